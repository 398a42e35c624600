"""What the lab is, what this machine can do, a quick start, and recent runs."""

import streamlit as st

from lab import presets
from lab.ui import cards, links, submit
from lab.ui.frame import head
from lab.ui.markdown_safety import escape_markdown, user_errors

head("Finetune Lab")
st.markdown(
    "Fine-tune a language model on this machine, **watch** it learn, and **talk** to the result "
    "beside its base. Runs go on when you close this page; nothing leaves this computer."
)

cards.warnings()

first = presets.get("first")
with st.container(border=True):
    st.subheader("Quick start", anchor=False)
    st.markdown(
        "Teach SmolLM2-135M a new identity: LoRA on a hundred short chats, sixty steps, a few "
        "minutes on two processor cores. Then ask it who made it."
    )
    with st.container(horizontal=True, vertical_alignment="center"):
        clicked = st.button(
            "Train it now", icon=":material/play_arrow:", type="primary", key="quick"
        )
        st.page_link(links.page("new_run"), label="Choose everything", icon=":material/tune:")
    if clicked:
        with user_errors():
            links.open_run(submit.quick_start(first).id)

grid = st.grid(2, min_column_width=320, gap="medium")
with grid.cell():
    st.subheader("This machine", anchor=False)
    cards.machine()
with grid.cell():
    st.subheader("Recent runs", anchor=False)
    entries = cards.recent(5)
    if not entries:
        st.info("No runs yet. The quick start above makes the first one.", icon=":material/info:")
    for entry in entries:
        cards.run_line(entry)
    if entries:
        st.page_link(
            links.page("runs"), label=escape_markdown("All runs"), icon=":material/table_rows:"
        )
