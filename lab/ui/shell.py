"""The frame of every page: style, logo, navigation, and notices of runs that ended elsewhere."""

from __future__ import annotations

import streamlit as st

from lab.paths import ASSETS, ROOT
from lab.ui import notices, theme_watch
from lab.ui.markdown_safety import user_errors

PAGES = {
    "": [("home", "Home", "home")],
    "Train": [
        ("new_run", "New run", "add_circle"),
        ("monitor", "Monitor", "monitoring"),
        ("runs", "Runs", "table_rows"),
        ("data", "Data", "dataset"),
    ],
    "Compare": [
        ("compare", "Compare", "compare_arrows"),
        ("race", "Race", "flag"),
    ],
    "Use": [("chat", "Chat", "forum"), ("results", "Results", "inventory_2")],
    "Plan": [
        ("advisor", "Advisor", "signpost"),
        ("memory", "Memory", "memory_alt"),
        ("claims", "Claims", "fact_check"),
    ],
}

st.set_page_config(
    page_title="Finetune Lab",
    page_icon=str(ASSETS / "icon.svg"),
    layout="wide",
    initial_sidebar_state=220,
)
st.html(ASSETS / "lab.css")
st.logo(str(ASSETS / "logo.svg"), size="large", icon_image=str(ASSETS / "icon.svg"))
page = st.navigation(
    {
        section: [
            st.Page(
                str(ROOT / "pages" / f"{name}.py"),
                title=title,
                icon=f":material/{icon}:",
                url_path=None if name == "home" else name,
                default=name == "home",
            )
            for name, title, icon in entries
        ]
        for section, entries in PAGES.items()
    }
)
notices.show()
theme_watch.watch()
with user_errors():
    page.run()
