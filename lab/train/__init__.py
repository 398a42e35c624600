"""The worker: `python -m lab.train RUN_DIR`. Imports torch; never Streamlit."""
