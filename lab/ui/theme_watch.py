"""Charts at rest follow a change of theme: Streamlit alone runs a page again at the next click."""

from __future__ import annotations

import streamlit as st

# Once for all pages of a visit. The ground tells a change also where the browser follows the
# system's theme, whose name stays the same. A component of Streamlit's could say it as well, but
# its state cannot be serialised, which runner.enforceSerializableSessionState asks for.
SCRIPT = """<script>
if (!window.labThemeWatch) {
  const app = document.querySelector(".stApp");
  const ground = () => getComputedStyle(app).backgroundColor;
  let before = ground();
  window.labThemeWatch = new MutationObserver(() => {
    const now = ground();
    if (now === before) return;
    before = now;
    document.querySelector("[class*=st-key-theme-watch] button")?.click();
  });
  window.labThemeWatch.observe(app, {attributes: true});
}
</script>"""


def watch() -> None:
    """Run the page again when its theme changes. The button is hidden from everybody."""
    with st.container(key="theme-watch"):
        st.html(SCRIPT, unsafe_allow_javascript=True)
        st.button("Draw again", key="theme.watch")
