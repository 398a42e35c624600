"""Ask the base and up to three results the same, side by side."""

import streamlit as st

from lab.ui import chat_view, links
from lab.ui.frame import head

head("Chat")
choices = chat_view.choices()
if not choices:
    st.info("No model to talk to yet. Prepare the built-in one with `make setup`.")
    st.page_link(links.page("home"), label="Home", icon=":material/home:")
    st.stop()

chosen = chat_view.choose(choices)
settings = chat_view.settings(chosen)
chat_view.memory()

panes = chat_view.panes(chosen)
prompt = st.chat_input("Ask all of them the same", key="chat.prompt", max_chars=8000)
suggestion = chat_view.suggestions(chosen)
if chosen and (prompt or suggestion):
    chat_view.ask(chosen, panes, prompt or suggestion, settings)
