"""The Hugging Face Hub: the one place from which the lab talks to it.

The libraries are kept from it: they load from folders, and the variables of `settings.for_children`
tell them that there is no network. So nothing is contacted but the address that was named.
"""
