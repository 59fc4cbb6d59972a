"""Phase I: golden rankings, and the job that makes them."""
