"""What a statement reads, writes and does, as far as its text tells: whether two of them may change places."""

from __future__ import annotations

import ast

PURE = {
    "len",
    "int",
    "bool",
    "float",
    "str",
    "min",
    "max",
    "sum",
    "total",
    "tuple",
    "list",
    "dict",
    "set",
    "sorted",
    "State",
    "self._keys.take",
}
"""Functions that only compute; those of numpy do as well, and these methods of arrays:"""
PURE_METHODS = {"sum", "any", "all", "copy", "astype", "tolist", "dot", "max", "min", "get", "keys", "values", "items"}

MOVES = {"append", "appendleft", "add", "discard", "remove", "pop", "popleft", "extend", "update", "clear"}
"""What containers are told."""


def _names(node: ast.stmt, context: type[ast.expr_context]) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, context)}


def bound(node: ast.stmt) -> set[str]:
    """The names that it gives something to stand for."""
    return _names(node, ast.Store)


def read(node: ast.stmt) -> set[str]:
    """The names that it reads."""
    return _names(node, ast.Load)


def acts(node: ast.stmt) -> bool:
    """Whether it calls something that may do more than compute."""
    for call in (part for part in ast.walk(node) if isinstance(part, ast.Call)):
        name = ast.unparse(call.func)
        if (
            name in PURE
            or name.startswith("np.")
            or (isinstance(call.func, ast.Attribute) and call.func.attr in PURE_METHODS)
        ):
            continue
        return True
    return False


def uses(node: ast.stmt) -> set[str]:
    """The attributes and items that it reads or writes, as they are written, and what these are of; `a[]` for an `a` of
    which it uses one named item alone."""
    parts = [part for part in ast.walk(node) if isinstance(part, ast.Attribute | ast.Subscript)]
    of_items = {id(part.value) for part in parts if _is_named_item(part)}
    return {ast.unparse(part) + "[]" * (id(part) in of_items) for part in parts}


def places(node: ast.stmt) -> set[str]:
    """Those that it writes; of an item, what it is of."""
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    found: set[str] = set()
    for part in (part for target in targets if target is not None for part in ast.walk(target)):
        if isinstance(part, ast.Subscript) and isinstance(part.ctx, ast.Store):
            found |= {
                ast.unparse(part.value),
                ast.unparse(part) if _is_named_item(part) else f"{ast.unparse(part.value)}[]",
            }
        elif isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store):
            found |= {ast.unparse(part), f"{ast.unparse(part)}[]"}
    return found


def _is_named_item(part: ast.AST) -> bool:
    return (
        isinstance(part, ast.Subscript) and isinstance(part.slice, ast.Constant) and isinstance(part.slice.value, str)
    )


def is_a_part(node: ast.stmt, beside: ast.stmt) -> bool:
    """Whether it gives an object an attribute, made from neither the object as a whole nor what `beside` gives it."""
    if not isinstance(node, ast.Assign) or not all(isinstance(target, ast.Attribute) for target in node.targets):
        return False
    inside = {id(part.value) for part in ast.walk(node.value) if isinstance(part, ast.Attribute)}
    whole = any(
        isinstance(part, ast.Name) and part.id == "self" and id(part) not in inside for part in ast.walk(node.value)
    )
    called = any(
        isinstance(part, ast.Call) and ast.unparse(part.func).startswith("self.") for part in ast.walk(node.value)
    )
    return not (whole or called or places(beside) & uses(node))


def fills_apart(node: ast.stmt, beside: ast.stmt) -> bool:
    """Whether it appends to a list of the function, with which `beside`, which only computes, has nothing to do."""
    match node:
        case ast.Expr(ast.Call(ast.Attribute(ast.Name(name), "append"), [item])):
            pure = not acts(ast.Expr(item)) and not acts(beside)
            return pure and name not in read(beside) and not places(beside) & uses(node)
    return False


def moves_apart(node: ast.stmt, beside: ast.stmt) -> bool:
    """Whether it puts something into a container, or takes it out, with which `beside` has nothing to do."""
    match node:
        case ast.Expr(ast.Call(ast.Attribute(ast.Name() | ast.Attribute() as container, verb), items, [])):
            name = ast.unparse(container)
            known = {"self", name} & (_alone(beside) | uses(beside))
            return verb in MOVES and name != "self" and not known and not any(acts(ast.Expr(item)) for item in items)
    return False


def _alone(node: ast.stmt) -> set[str]:
    """The names that it reads as they are, and not only an attribute of."""
    inside = {id(part.value) for part in ast.walk(node) if isinstance(part, ast.Attribute)}
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name) and id(part) not in inside}


def only_names(node: ast.stmt) -> bool:
    """Whether it gives names of the function to what others of its names, and constants, stand for."""
    if not isinstance(node, ast.Assign) or stores(node):
        return False
    plain = (ast.Name, ast.Constant, ast.Tuple, ast.List, ast.Dict, ast.expr_context)
    return all(isinstance(part, plain) for part in ast.walk(node.value))


def stores(node: ast.stmt) -> bool:
    """Whether it changes more than local names."""
    return any(
        isinstance(part, ast.Attribute | ast.Subscript) and isinstance(part.ctx, ast.Store) for part in ast.walk(node)
    )
