"""What people look at: pictures and one page."""
