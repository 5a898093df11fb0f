"""`psrpc doctor`: what usually goes wrong with a job, looked at before one is started."""
