// The namespaces of a cache: a dict from their name to the root of their tree.
#pragma once

#include "objects.h"

#include <memory>
#include <vector>

namespace pawl {

inline Root* root_of_capsule(PyObject* capsule) { return static_cast<Root*>(PyCapsule_GetPointer(capsule, nullptr)); }

// The root of a namespace, or nullptr: with an error set, or because there is none.
inline Root* find_root(CacheObject* cache, PyObject* label) {
    PyObject* capsule = PyDict_GetItemWithError(cache->roots, label);
    return capsule == nullptr ? nullptr : root_of_capsule(capsule);
}

inline Root* make_root(CacheObject* cache, PyObject* label) {
    auto root = std::make_unique<Root>(label);
    Owned capsule(PyCapsule_New(root.get(), nullptr, nullptr));
    // The dict keeps the label alive.
    if (!capsule || PyDict_SetItem(cache->roots, label, capsule.get()) != 0) return nullptr;
    cache->tree->enroll(root.get());
    return root.release();
}

// Of a namespace without any pages. False, with an error set, where the dict has lost it.
inline bool remove_root(CacheObject* cache, Root* root) {
    const bool removed = PyDict_DelItem(cache->roots, static_cast<PyObject*>(root->label)) == 0;
    Tree::destroy(root);
    return removed;
}

inline std::vector<Root*> all_roots(CacheObject* cache) {
    std::vector<Root*> found;
    PyObject *label, *capsule;
    for (Py_ssize_t at = 0; PyDict_Next(cache->roots, &at, &label, &capsule);) {
        found.push_back(root_of_capsule(capsule));
    }
    return found;
}

}  // namespace pawl
