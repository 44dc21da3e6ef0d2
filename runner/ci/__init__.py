"""Pull requests: what a change touches is planned, shown in one comment, and applied as it was shown.

Above the verbs: it uses them, git, and the API of the host.
"""
