// The compiled radix tree as a Python type. Methods decide nothing: they read arguments, ask the tree, make results.
//
// Nothing of Python is called while the tree is between two states: a call may run the collector, that may run any
// finalizer, and that may come back in here. Safe under the interpreter lock, like every Python object.
#include "moves.h"
#include "snapshot.h"

#include <random>

namespace {

using namespace pawl;

constexpr long INTERFACE = 2;  // Rises with every change that memory/prefix/compiled.py must know of.

// Namespaces are plain text: looking one up runs nobody's code. A new reference, or nullptr with an error set.
PyObject* plain_text(PyObject* label) {
    return PyUnicode_CheckExact(label) ? Py_NewRef(label) : PyUnicode_FromObject(label);
}

PyObject* match_and_hold(PyObject* self, PyObject* const* given, Py_ssize_t num_places, PyObject* keywords) {
    static const char* const names[] = {"tokens", "namespace", "priority"};
    Arguments<3> arguments;
    int64_t priority = 0;
    if (!arguments.read("match_and_hold", names, 2, given, num_places, keywords) ||
        !read_integer(arguments.values[2], priority)) {
        return nullptr;
    }
    return guarded([&]() -> PyObject* {
        CacheObject* cache = as_cache(self);
        Tree& tree = *cache->tree;
        Int32View tokens;
        Owned label(plain_text(arguments.values[1]));
        if (!label || !tokens.open(arguments.values[0], "token ids")) return nullptr;
        Owned hold(reinterpret_cast<PyObject*>(new_hold(cache)));
        if (!hold) return nullptr;
        Root* root = find_root(cache, label.get());
        if (root == nullptr && PyErr_Occurred()) return nullptr;
        Node* node = nullptr;
        int64_t num_tokens = 0;
        if (root != nullptr) {
            const Reached reached = tree.reach(root, tokens.data, tokens.size / tree.page_size);
            if (reached.at > 0) node = tree.cut(reached);
            num_tokens = static_cast<int64_t>(reached.at * tree.page_size);
        }
        ++tree.counts.matches;
        tree.counts.hit_tokens += num_tokens;
        tree.counts.missed_tokens += static_cast<int64_t>(tokens.size) - num_tokens;
        take_hold(as_hold(hold.get()), tree, node, num_tokens);
        tree.use(node, num_tokens, 0, priority);
        return hold.release();
    });
}

// Tells the listener of pages that now hang below `parent`.
bool tell_stored(CacheObject* cache, PyObject* label, bool below_root, int32_t parent, const Int32View& tokens,
                 size_t first_token, PyObject* adopted) {
    if (cache->events == Py_None) return true;
    Owned events(Py_NewRef(cache->events));
    Owned event(named_tuple(imports.stored, Py_NewRef(label), below_root ? Py_NewRef(Py_None) : PyLong_FromLong(parent),
                            array_of(bytes_of(tokens.data + first_token, tokens.size - first_token)),
                            Py_NewRef(adopted)));
    return event && PyList_Append(events.get(), event.get()) == 0;
}

// Finds or makes the path for all of `tokens` and holds it; then lets go of `before`. The pages adopted, as bytes.
PyObject* store(CacheObject* cache, PyObject* label, const Int32View& tokens, const Int32View& pages, HoldObject* hold,
                HoldObject* before, int64_t fence, int64_t priority) {
    Tree& tree = *cache->tree;
    Owned adopted;
    Node* node = nullptr;
    size_t at = 0;
    Node* parent = nullptr;
    if (tokens.size > 0) {
        Root* root = find_root(cache, label);
        if (root == nullptr && (PyErr_Occurred() || (root = make_root(cache, label)) == nullptr)) return nullptr;
        const Reached reached = tree.reach(root, tokens.data, pages.size);
        at = reached.at;
        try {
            node = parent = tree.cut(reached);
            if (at < pages.size) {
                node = tree.grow(parent, tokens.data + at * tree.page_size, pages.data + at, pages.size - at, fence);
            }
        } catch (const std::bad_alloc&) {
            if (root->first_child == nullptr) remove_root(cache, root);
            throw;
        }
    }
    ++tree.counts.insertions;
    take_hold(hold, tree, node, static_cast<int64_t>(tokens.size));
    tree.use(node, hold->num_tokens, before == nullptr ? 0 : before->num_tokens, priority);
    // Only after the new one holds: what both share is never unheld in between.
    if (before != nullptr) let_go(before, tree, fence);
    // `parent` is valid until Python runs again.
    const bool below_root = parent == nullptr || parent->parent == nullptr;
    const int32_t last = below_root ? 0 : parent->edge.pages()[parent->edge.count - 1];
    Owned result(array_of(bytes_of(pages.data + at, pages.size - at)));
    if (!result) return nullptr;
    if (at < pages.size && !tell_stored(cache, label, below_root, last, tokens, at * tree.page_size, result.get())) {
        return nullptr;
    }
    return result.release();
}

PyObject* insert(PyObject* self, PyObject* const* given, Py_ssize_t num_places, PyObject* keywords) {
    static const char* const names[] = {"tokens", "pages", "namespace", "hold", "fence", "priority"};
    Arguments<6> arguments;
    int64_t fence = 0, priority = 0;
    if (!arguments.read("insert", names, 5, given, num_places, keywords) ||
        !read_integer(arguments.values[4], fence) || !read_integer(arguments.values[5], priority)) {
        return nullptr;
    }
    return guarded([&]() -> PyObject* {
        CacheObject* cache = as_cache(self);
        Int32View tokens, pages;
        Owned label(plain_text(arguments.values[2]));
        if (!label || !tokens.open(arguments.values[0], "token ids") || !pages.open(arguments.values[1], "pages")) {
            return nullptr;
        }
        if (tokens.size != pages.size * cache->tree->page_size) {
            return violation("pages are inserted whole", Py_BuildValue("{s:n,s:n}", "num_tokens", tokens.size,
                                                                       "num_pages", pages.size));
        }
        Owned hold(reinterpret_cast<PyObject*>(new_hold(cache)));
        if (!hold) return nullptr;
        HoldObject* before = nullptr;
        if (arguments.values[3] != Py_None && (before = own(cache, arguments.values[3])) == nullptr) return nullptr;
        PyObject* adopted =
            store(cache, label.get(), tokens, pages, as_hold(hold.get()), before, fence, priority);
        return adopted == nullptr ? nullptr : named_tuple(imports.insertion, hold.release(), adopted);
    });
}

PyObject* release(PyObject* self, PyObject* const* given, Py_ssize_t num_places, PyObject* keywords) {
    static const char* const names[] = {"hold", "fence", "used"};
    Arguments<3> arguments;
    int64_t fence = 0;
    if (!arguments.read("release", names, 2, given, num_places, keywords) ||
        !read_integer(arguments.values[1], fence)) {
        return nullptr;
    }
    const int used = arguments.values[2] == nullptr ? 1 : PyObject_IsTrue(arguments.values[2]);
    if (used < 0) return nullptr;
    CacheObject* cache = as_cache(self);
    HoldObject* hold = own(cache, arguments.values[0]);
    if (hold == nullptr) return nullptr;
    if (!used) cache->tree->unuse(hold->node);
    let_go(hold, *cache->tree, fence);
    Py_RETURN_NONE;
}

bool tell(CacheObject* cache, PyObject* event) {
    Owned owned(event), events(Py_NewRef(cache->events));
    return owned && PyList_Append(events.get(), owned.get()) == 0;
}

// Evicts and removes the roots that are left without children: (pages, fence).
PyObject* evict_pages(CacheObject* cache, int64_t count) {
    const Evicted gone = cache->tree->evict(count);
    for (Root* root : gone.emptied) {
        if (!remove_root(cache, root)) return nullptr;
    }
    return named_tuple(imports.eviction, array_of(bytes_of(gone.pages.data(), gone.pages.size())),
                       PyLong_FromLongLong(gone.fence));
}

PyObject* evict(PyObject* self, PyObject* const* given, Py_ssize_t num_places, PyObject* keywords) {
    static const char* const names[] = {"count"};
    Arguments<1> arguments;
    int64_t count = 0;
    if (!arguments.read("evict", names, 1, given, num_places, keywords) ||
        !read_integer(arguments.values[0], count)) {
        return nullptr;
    }
    return guarded([&]() -> PyObject* {
        CacheObject* cache = as_cache(self);
        Owned eviction(evict_pages(cache, count));
        if (!eviction) return nullptr;
        PyObject* pages = PyTuple_GET_ITEM(eviction.get(), 0);
        if (cache->events != Py_None && pages != imports.no_pages &&
            !tell(cache, named_tuple(imports.removed, Py_NewRef(pages)))) {
            return nullptr;
        }
        return eviction.release();
    });
}

PyObject* reset(PyObject* self, PyObject*) {
    return guarded([&]() -> PyObject* {
        CacheObject* cache = as_cache(self);
        Tree& tree = *cache->tree;
        if (tree.num_holds != 0) {
            return violation("a cache that is held is not reset",
                             Py_BuildValue("{s:L,s:L}", "holds", static_cast<long long>(tree.num_holds), "held_pages",
                                           static_cast<long long>(tree.held)));
        }
        Owned eviction(evict_pages(cache, tree.evictable));
        if (!eviction) return nullptr;
        if (tree.num_nodes == 0) tree.forget_size();
        if (cache->events != Py_None && !tell(cache, named_tuple(imports.cleared))) return nullptr;
        return eviction.release();
    });
}

PyObject* statistics(PyObject* self, PyObject*) {
    const CacheObject* cache = as_cache(self);
    const Tree& tree = *cache->tree;
    const Counts& counts = tree.counts;
    auto number = [](int64_t value) { return static_cast<long long>(value); };
    return Py_BuildValue(
        "{s:L,s:L,s:L,s:L,s:L,s:L,s:L,s:L,s:L,s:L,s:L,s:n}", "matches", number(counts.matches), "hit_tokens",
        number(counts.hit_tokens), "missed_tokens", number(counts.missed_tokens), "insertions",
        number(counts.insertions), "adopted_pages", number(counts.adopted_pages), "splits", number(counts.splits),
        "evicted_pages", number(counts.evicted_pages), "nodes", number(tree.num_nodes), "pages",
        number(tree.held + tree.evictable), "held_pages", number(tree.held), "holds", number(tree.num_holds),
        "namespaces", PyDict_GET_SIZE(cache->roots));
}

// ---- life ----

PyObject* cache_new(PyTypeObject* type, PyObject* arguments, PyObject* keywords) {
    static const char* names[] = {"page_size", "policy", nullptr};
    Py_ssize_t page_size;
    int policy;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "ni", const_cast<char**>(names), &page_size, &policy)) {
        return nullptr;
    }
    if (page_size < 1 || policy < 0 || policy > static_cast<int>(Policy::priority)) {
        return PyErr_Format(PyExc_ValueError, "page size %zd or policy %d is out of range", page_size, policy);
    }
    return guarded([&]() -> PyObject* {
        // Looked at by nothing but the table of children: see there why it must be a secret.
        std::random_device source;
        const uint64_t seed = (static_cast<uint64_t>(source()) << 32) | source();
        auto tree = std::make_unique<Tree>(static_cast<size_t>(page_size), static_cast<Policy>(policy), seed);
        Owned self(type->tp_alloc(type, 0)), roots(PyDict_New());
        if (!self || !roots) return nullptr;
        as_cache(self.get())->tree = tree.release();
        as_cache(self.get())->roots = roots.release();
        as_cache(self.get())->events = Py_NewRef(Py_None);
        return self.release();
    });
}

int cache_traverse(PyObject* self, visitproc visit, void* arg) {
    Py_VISIT(as_cache(self)->events);
    Py_VISIT(Py_TYPE(self));
    return 0;
}

int cache_clear(PyObject* self) {
    // Not None: whoever looks at it within the collection would find an attribute that is not there.
    if (as_cache(self)->events != nullptr) Py_SETREF(as_cache(self)->events, Py_NewRef(Py_None));
    return 0;
}

void cache_dealloc(PyObject* self) {
    CacheObject* cache = as_cache(self);
    PyTypeObject* type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    if (cache->roots != nullptr) {
        PyObject *label, *capsule;
        for (Py_ssize_t at = 0; PyDict_Next(cache->roots, &at, &label, &capsule);) {
            Tree::destroy(root_of_capsule(capsule));
        }
    }
    Py_CLEAR(cache->roots);
    Py_CLEAR(cache->events);
    delete cache->tree;
    type->tp_free(self);
    Py_DECREF(type);
}

PyObject* cache_page_size(PyObject* self, void*) { return PyLong_FromSize_t(as_cache(self)->tree->page_size); }
PyObject* cache_evictable(PyObject* self, void*) { return PyLong_FromLongLong(as_cache(self)->tree->evictable); }
PyObject* cache_held(PyObject* self, void*) { return PyLong_FromLongLong(as_cache(self)->tree->held); }
PyObject* cache_events(PyObject* self, void*) { return Py_NewRef(as_cache(self)->events); }

int set_events(PyObject* self, PyObject* events, void*) {
    if (events == nullptr || (events != Py_None && !PyList_Check(events))) {
        PyErr_SetString(PyExc_TypeError, "events are a list, or None where nobody listens");
        return -1;
    }
    Py_SETREF(as_cache(self)->events, Py_NewRef(events));
    return 0;
}

PyGetSetDef cache_attributes[] = {
    {"page_size", cache_page_size, nullptr, "Tokens of a page.", nullptr},
    {"evictable", cache_evictable, nullptr, "Pages of unheld nodes.", nullptr},
    {"held", cache_held, nullptr, "Pages of held nodes.", nullptr},
    {"events", cache_events, set_events, "What has changed since somebody took them out.", nullptr},
    {},
};

constexpr int FAST = METH_FASTCALL | METH_KEYWORDS;
PyCFunction fast(PyObject* (*method)(PyObject*, PyObject* const*, Py_ssize_t, PyObject*)) {
    return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(method));
}

PyMethodDef cache_methods[] = {
    {"match_and_hold", fast(match_and_hold), FAST, "Hold the longest cached prefix of tokens."},
    {"insert", fast(insert), FAST, "Offer the pages that hold tokens, and hold all of it instead of hold."},
    {"release", fast(release), FAST, "Let go of a hold, once."},
    {"evict", fast(evict), FAST, "Drop unheld leaves in the policy's order until so many pages are gone."},
    {"reset", reset, METH_NOARGS, "Drop everything; refused while anything is held."},
    {"statistics", statistics, METH_NOARGS, "Counts since start, and the size now."},
    {"snapshot", snapshot, METH_NOARGS, "Every node, and the order of leaving: see memory/prefix/compiled.py."},
    {"check_links", check_links, METH_NOARGS, "The properties of what a snapshot does not show."},
    {},
};

PyType_Slot cache_slots[] = {
    {Py_tp_new, reinterpret_cast<void*>(cache_new)},
    {Py_tp_dealloc, reinterpret_cast<void*>(cache_dealloc)},
    {Py_tp_traverse, reinterpret_cast<void*>(cache_traverse)},
    {Py_tp_clear, reinterpret_cast<void*>(cache_clear)},
    {Py_tp_getset, cache_attributes},
    {Py_tp_methods, cache_methods},
    {Py_tp_doc, const_cast<char*>("The compiled radix tree; memory/prefix/compiled.py makes a cache of it.")},
    {},
};
PyType_Spec cache_spec = {
    "pawl.memory.prefix._radix.CompiledTree", sizeof(CacheObject), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_IMMUTABLETYPE, cache_slots};

PyModuleDef module_definition = {PyModuleDef_HEAD_INIT, "pawl.memory.prefix._radix", nullptr, -1, move_functions,
                                 nullptr,               nullptr,                nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__radix() {
    if (!load_imports()) return nullptr;
    Owned module(PyModule_Create(&module_definition));
    hold_type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&hold_spec));
    cache_type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&cache_spec));
    if (!module || hold_type == nullptr || cache_type == nullptr) return nullptr;
    if (PyModule_AddObjectRef(module.get(), "CompiledHold", reinterpret_cast<PyObject*>(hold_type)) != 0 ||
        PyModule_AddObjectRef(module.get(), "CompiledTree", reinterpret_cast<PyObject*>(cache_type)) != 0 ||
        PyModule_AddIntConstant(module.get(), "INTERFACE", INTERFACE) != 0) {
        return nullptr;
    }
    return module.release();
}
