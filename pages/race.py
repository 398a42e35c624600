"""Several methods on equal terms: what each would take, one click that queues all, one verdict."""

import streamlit as st

from lab.compare import race_file
from lab.ui import race_forecast, race_form, race_menu, race_view, submit
from lab.ui.frame import end_page, head
from lab.ui.markdown_safety import escape_markdown

chosen = st.query_params.get("race", "")
if chosen:
    race = race_file.load(chosen)
    actions = head(f"Race · {escape_markdown(race.title)}")
    race_menu.menus(actions, is_form=False)
    race_view.show(race)
    end_page()

race_menu.take_ready()
actions = head("Race")
race_menu.menus(actions, is_form=True)
if not race_form.is_filled():
    race_menu.ready_cards()
    end_page()
submit.ticket()
submit.warm()
with st.container(border=True):
    race_form.shared()
race_forecast.bar(race_forecast.rows())
