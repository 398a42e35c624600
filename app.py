"""The web app: `streamlit run app.py`."""

import streamlit as st

app = st.App("lab/ui/shell.py")
