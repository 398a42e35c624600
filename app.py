"""The web app: `streamlit run app.py`, behind a token (`-- --no-token` switches that off)."""

import streamlit as st
from starlette.middleware import Middleware

from lab.ui.gate import Gate, lifespan

app = st.App("lab/ui/shell.py", middleware=[Middleware(Gate)], lifespan=lifespan)
