"""What is run together: asset jobs, their schedules, and the demo."""
