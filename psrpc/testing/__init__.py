"""What tests of psrpc and of programs that use it need: fakes, and a simulator of whole jobs."""
