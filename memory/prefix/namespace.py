"""Who may share cached pages with whom: only requests with the same adapter, salt and weight version.

Keys and values depend on the tokens *and* on what computed them. So every cache key begins with a namespace, on the
device and in every tier below it, and there is no place where two namespaces meet.
"""

from __future__ import annotations

from urllib.parse import quote


def namespace_of(*, adapter: str = "", salt: str = "", weights: str = "") -> str:
    """The namespace of a request, ASCII: "" when all three are empty, else such as `salt=s&weights=2fa1`.

    `adapter`: what changes the weights for this request alone; `salt`: given by a client that wants to share with
    those only who give the same; `weights`: the version of the weights served. No two triples have one namespace:
    what separates the parts never occurs within one, and an empty part is left out.
    """
    parts = (("adapter", adapter), ("salt", salt), ("weights", weights))
    return "&".join(f"{name}={quote(value, safe='', errors='surrogatepass')}" for name, value in parts if value)
