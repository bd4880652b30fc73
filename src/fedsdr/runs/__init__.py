"""What runs the clients' tasks: this process, or a distributed engine."""
