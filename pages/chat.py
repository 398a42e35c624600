"""Ask up to four models the same at the same time, and see that it was the same."""

import streamlit as st

from lab.chat import models as chat_models
from lab.ui import chat_history, chat_panes, chat_settings, chat_turns, chat_view, links, vote_view
from lab.ui.frame import end_page, head

actions = head("Chat")
titles = chat_models.available()
if not titles:
    st.info("No model available yet. Run `make setup` to install the built-in model.")
    st.page_link(links.page("home"), label="Home", icon=":material/home:")
    end_page()

chat = chat_history.current()
names = chat_panes.chosen(titles, chat)
is_blind = vote_view.is_chosen()
if actions.button("New", icon=":material/add_comment:", key="chat.new"):
    vote_view.close() if is_blind else chat_history.close()
    st.rerun()
if actions.button("History", icon=":material/history:", key="chat.open_history"):
    chat_history.show()
settings_popover = actions.popover("Settings", icon=":material/tune:", key="chat.settings")
with settings_popover:
    settings = chat_settings.settings(names, chat)
vote_view.switch(actions)
if is_blind:
    vote_view.show(names, titles, settings)
    with settings_popover:
        chat_settings.show_loaded()
    end_page()

if chat is not None:
    chat = chat_view.seen(chat)  # once, so that heads and answers agree
chat_panes.heads(names, titles, chat)
chat_view.terms(settings, chat)
chat_view.memory_note()
if chat is not None:
    chat_turns.turns(chat)
with settings_popover:
    chat_settings.show_loaded()
suggestion = chat_view.suggestions(names) if chat is None else None
chat_view.message_field(chat, names, settings, suggestion)
