// What a cache shows to people and tests. Not on the hot path.
#pragma once

#include "roots.h"

#include <unordered_map>
#include <vector>

namespace pawl {

// While it lives the collector does not run, so nobody changes a tree that is being walked.
class CollectorPause {
public:
    CollectorPause() noexcept : was_enabled_(PyGC_Disable()) {}
    CollectorPause(const CollectorPause&) = delete;
    CollectorPause& operator=(const CollectorPause&) = delete;
    ~CollectorPause() {
        if (was_enabled_) PyGC_Enable();
    }

private:
    int was_enabled_;
};

using Indices = std::unordered_map<const Node*, long long>;

// (index of the parent or None, token ids, pages, holds, fence, created, used, hits, priority, entry)
inline PyObject* describe(const Node* node, const Tree& tree, const Indices& indices) {
    const auto parent = indices.find(node->parent);
    const Rank& rank = node->rank;
    auto number = [](int64_t value) { return static_cast<long long>(value); };
    return Py_BuildValue("(NNNLLLLLLL)",
                         parent == indices.end() ? Py_NewRef(Py_None) : PyLong_FromLongLong(parent->second),
                         bytes_of(node->edge.tokens(tree.page_size), node->edge.count * tree.page_size),
                         array_of(bytes_of(node->edge.pages(), node->edge.count)), number(node->holds),
                         number(node->fence), number(rank.created), number(rank.used), number(rank.hits),
                         number(rank.priority), number(rank.entry));
}

inline bool append(PyObject* list, PyObject* item) {
    Owned owned(item);
    return owned && PyList_Append(list, owned.get()) == 0;
}

// ([(namespace, holds of its root, [node, ...]), ...], [index of who waits to leave, ...], reading of the clock).
// Nodes are numbered through all namespaces, parents before children, children in the order in which they came.
inline PyObject* snapshot(PyObject* self, PyObject*) {
    return guarded([&]() -> PyObject* {
        const CollectorPause pause;
        const Tree& tree = *as_cache(self)->tree;
        Indices indices;
        Owned roots(PyList_New(0)), waiting(PyList_New(0));
        if (!roots || !waiting) return nullptr;
        for (Root* root : all_roots(as_cache(self))) {
            Owned nodes(PyList_New(0));
            if (!nodes) return nullptr;
            for (const Node* node : Tree::walk(root)) {
                if (!append(nodes.get(), describe(node, tree, indices))) return nullptr;
                indices.emplace(node, static_cast<long long>(indices.size()));
            }
            const auto holds = static_cast<long long>(root->holds);
            if (!append(roots.get(), Py_BuildValue("(OLO)", root->label, holds, nodes.get()))) return nullptr;
        }
        for (const Node* node : tree.order.waiting()) {
            const auto index = indices.find(node);
            if (index == indices.end()) return violation("who waits to leave is there", PyDict_New());
            if (!append(waiting.get(), PyLong_FromLongLong(index->second))) return nullptr;
        }
        return Py_BuildValue("(OOL)", roots.get(), waiting.get(), static_cast<long long>(tree.order.clock()));
    });
}

inline PyObject* check_links(PyObject* self, PyObject*) {
    return guarded([&]() -> PyObject* {
        const char* statement = as_cache(self)->tree->broken(all_roots(as_cache(self)));
        return statement == nullptr ? Py_NewRef(Py_None) : violation(statement, PyDict_New());
    });
}

}  // namespace pawl
