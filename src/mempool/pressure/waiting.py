"""Who waits for relief: threads and tasks."""
