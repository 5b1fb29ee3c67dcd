// The two Python objects of the compiled radix tree, and all there is to a hold.
#pragma once

#include "python.h"

#include "tree.h"

namespace pawl {

struct CacheObject {
    PyObject_HEAD
    Tree* tree;
    PyObject* roots;   // dict: namespace -> capsule of Root
    PyObject* events;  // list or None
};

struct HoldObject {
    PyObject_HEAD
    CacheObject* owner;  // Keeps the tree alive, so that `node` is valid until this is released.
    Node* node;          // nullptr when nothing was found, or after the release.
    int64_t num_tokens;
    PyObject* pages;  // Gathered at the first look.
    bool released;
};

inline PyTypeObject* hold_type;
inline PyTypeObject* cache_type;

inline CacheObject* as_cache(PyObject* self) { return reinterpret_cast<CacheObject*>(self); }
inline HoldObject* as_hold(PyObject* self) { return reinterpret_cast<HoldObject*>(self); }

inline HoldObject* new_hold(CacheObject* cache) {
    HoldObject* hold = PyObject_GC_New(HoldObject, hold_type);
    if (hold == nullptr) return nullptr;
    hold->owner = reinterpret_cast<CacheObject*>(Py_NewRef(reinterpret_cast<PyObject*>(cache)));
    hold->node = nullptr;
    hold->num_tokens = 0;
    hold->pages = nullptr;
    hold->released = false;
    PyObject_GC_Track(hold);
    return hold;
}

inline int hold_traverse(PyObject* self, visitproc visit, void* arg) {
    Py_VISIT(as_hold(self)->owner);
    Py_VISIT(as_hold(self)->pages);
    Py_VISIT(Py_TYPE(self));
    return 0;
}

inline int hold_clear(PyObject* self) {
    as_hold(self)->node = nullptr;
    as_hold(self)->released = true;
    Py_CLEAR(as_hold(self)->owner);
    Py_CLEAR(as_hold(self)->pages);
    return 0;
}

inline void hold_dealloc(PyObject* self) {
    // A hold that was dropped without a release stays counted, as in the reference: only a release says which step
    // may still touch the pages.
    PyTypeObject* type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    hold_clear(self);
    type->tp_free(self);
    Py_DECREF(type);
}

inline PyObject* hold_num_tokens(PyObject* self, void*) { return PyLong_FromLongLong(as_hold(self)->num_tokens); }

inline PyObject* hold_released(PyObject* self, void*) { return PyBool_FromLong(as_hold(self)->released); }

inline PyObject* hold_pages(PyObject* self, void*) {
    HoldObject* hold = as_hold(self);
    if (hold->pages != nullptr) return Py_NewRef(hold->pages);
    if (hold->released) {
        return violation("the pages of a released hold are unknown",
                         Py_BuildValue("{s:L}", "num_tokens", static_cast<long long>(hold->num_tokens)));
    }
    size_t at = hold->node == nullptr ? 0 : static_cast<size_t>(hold->num_tokens) / hold->owner->tree->page_size;
    Owned bytes(bytes_of(nullptr, at));
    if (!bytes) return nullptr;
    char* to = PyBytes_AS_STRING(bytes.get());
    for (const Node* node = hold->node; at > 0; node = node->parent) {
        at -= node->edge.count;
        std::memcpy(to + at * sizeof(int32_t), node->edge.pages(), node->edge.count * sizeof(int32_t));
    }
    PyObject* pages = array_of(bytes.release());
    if (pages != nullptr) Py_XSETREF(hold->pages, Py_NewRef(pages));
    return pages;
}

inline PyGetSetDef hold_attributes[] = {
    {"num_tokens", hold_num_tokens, nullptr, "Length of the match in tokens.", nullptr},
    {"pages", hold_pages, nullptr, "Pages of the path in order, int32, read-only.", nullptr},
    {"released", hold_released, nullptr, "Whether it was let go of.", nullptr},
    {},
};

// The hold, when it is of this cache and not released yet; else nullptr, with MemoryViolation set.
inline HoldObject* own(CacheObject* cache, PyObject* object) {
    if (Py_IS_TYPE(object, hold_type) && !as_hold(object)->released && as_hold(object)->owner == cache) {
        return as_hold(object);
    }
    Owned num_tokens(PyObject_GetAttrString(object, "num_tokens"));
    if (num_tokens) {
        violation("a hold is released once, to the cache that gave it",
                  Py_BuildValue("{s:O}", "num_tokens", num_tokens.get()));
    }
    return nullptr;
}

inline void take_hold(HoldObject* hold, Tree& tree, Node* node, int64_t num_tokens) noexcept {
    hold->node = node;
    hold->num_tokens = num_tokens;
    if (node != nullptr) tree.pin(node);
}

inline void let_go(HoldObject* hold, Tree& tree, int64_t fence) noexcept {
    hold->released = true;
    Node* node = std::exchange(hold->node, nullptr);
    if (node != nullptr) tree.unpin(node, fence);
}

inline PyType_Slot hold_slots[] = {
    {Py_tp_dealloc, reinterpret_cast<void*>(hold_dealloc)},
    {Py_tp_traverse, reinterpret_cast<void*>(hold_traverse)},
    {Py_tp_clear, reinterpret_cast<void*>(hold_clear)},
    {Py_tp_getset, hold_attributes},
    {Py_tp_doc, const_cast<char*>("A held path of a compiled radix tree.")},
    {},
};
inline PyType_Spec hold_spec = {
    "pawl.memory.prefix._radix.CompiledHold", sizeof(HoldObject), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE, hold_slots};

}  // namespace pawl
