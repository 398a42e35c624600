"""Ask the base and up to three results the same, side by side."""

import streamlit as st

from lab.ui import chatting, links

st.title("Chat", anchor=False)
choices = chatting.choices()
if not choices:
    st.info("No model to talk to yet. Prepare the built-in one with `make setup`.")
    st.page_link(links.page("home"), label="Home", icon=":material/home:")
    st.stop()

chosen = chatting.choose(choices)
settings = chatting.settings(chosen)
chatting.memory()

panes = chatting.panes(chosen)
prompt = st.chat_input("Ask all of them the same", key="chat.prompt", max_chars=8000)
suggestion = chatting.suggestions(chosen)
if chosen and (prompt or suggestion):
    chatting.ask(chosen, panes, prompt or suggestion, settings)
