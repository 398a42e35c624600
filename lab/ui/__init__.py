"""What pages are made of. The only part of lab/ that knows Streamlit."""
