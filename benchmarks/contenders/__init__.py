"""Who is measured. A new one is a function that plays a worker's part, and a `Job` of it."""
