// What the binding needs of Python: references, arguments, arrays of int32, and errors.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <utility>
#include <vector>

namespace pawl {

// A reference that is given back at the end of its scope.
class Owned {
public:
    explicit Owned(PyObject* object = nullptr) noexcept : object_(object) {}
    Owned(Owned&& other) noexcept : object_(std::exchange(other.object_, nullptr)) {}
    Owned(const Owned&) = delete;
    Owned& operator=(const Owned&) = delete;
    ~Owned() { Py_XDECREF(object_); }

    PyObject* get() const noexcept { return object_; }
    PyObject* release() noexcept { return std::exchange(object_, nullptr); }
    explicit operator bool() const noexcept { return object_ != nullptr; }

private:
    PyObject* object_;
};

// Runs `body`, with what it throws as a Python error.
template <typename Body>
PyObject* guarded(Body body) {
    try {
        return body();
    } catch (const std::bad_alloc&) {
        return PyErr_NoMemory();
    }
}

// What is imported once and lives as long as the process.
struct Imports {
    PyObject* memory_violation;
    PyTypeObject* insertion;
    PyTypeObject* eviction;
    PyTypeObject* stored;
    PyTypeObject* removed;
    PyTypeObject* cleared;
    PyObject* frombuffer;
    PyObject* int32;
    PyObject* no_pages;
};
inline Imports imports;

// nullptr, with an error set, when there is no such name, or when an import before this one has failed.
inline PyObject* import_name(const char* module, const char* name) {
    if (PyErr_Occurred() != nullptr) return nullptr;
    Owned imported(PyImport_ImportModule(module));
    return imported ? PyObject_GetAttrString(imported.get(), name) : nullptr;
}

inline PyTypeObject* import_type(const char* module, const char* name) {
    return reinterpret_cast<PyTypeObject*>(import_name(module, name));
}

inline bool load_imports() {
    imports = {
        import_name("pawl.memory.violation", "MemoryViolation"),
        import_type("pawl.memory.prefix.base", "Insertion"),
        import_type("pawl.memory.prefix.base", "Eviction"),
        import_type("pawl.memory.prefix.events", "Stored"),
        import_type("pawl.memory.prefix.events", "Removed"),
        import_type("pawl.memory.prefix.events", "Cleared"),
        import_name("numpy", "frombuffer"),
        import_name("numpy", "int32"),
        import_name("pawl.memory.arrays", "NO_PAGES"),
    };
    return PyErr_Occurred() == nullptr;
}

// Raises MemoryViolation(statement, **facts). Steals `facts`, a dict; returns nullptr.
inline PyObject* violation(const char* statement, PyObject* facts) {
    Owned owned(facts), arguments(Py_BuildValue("(s)", statement));
    if (!owned || !arguments) return nullptr;
    Owned error(PyObject_Call(imports.memory_violation, arguments.get(), owned.get()));
    if (error) PyErr_SetObject(imports.memory_violation, error.get());
    return nullptr;
}

// A NamedTuple of the type, without the cost of calling it. Steals the fields; nullptr where one of them is missing.
template <typename... Fields>
PyObject* named_tuple(PyTypeObject* type, Fields... fields) {
    Owned owned[] = {Owned(fields)..., Owned()};
    constexpr size_t count = sizeof...(fields);
    for (size_t index = 0; index < count; ++index) {
        if (!owned[index]) return nullptr;
    }
    PyObject* made = type->tp_alloc(type, count);
    if (made == nullptr) return nullptr;
    for (size_t index = 0; index < count; ++index) PyTuple_SET_ITEM(made, index, owned[index].release());
    return made;
}

// numpy int32 [size of `bytes` / 4], read-only. Steals `bytes`.
inline PyObject* array_of(PyObject* bytes) {
    Owned owned(bytes);
    if (!owned) return nullptr;
    if (PyBytes_GET_SIZE(bytes) == 0) return Py_NewRef(imports.no_pages);
    PyObject* arguments[] = {nullptr, bytes, imports.int32};
    return PyObject_Vectorcall(imports.frombuffer, arguments + 1, 2 | PY_VECTORCALL_ARGUMENTS_OFFSET, nullptr);
}

inline PyObject* bytes_of(const int32_t* values, size_t count) {
    return PyBytes_FromStringAndSize(
        reinterpret_cast<const char*>(values), static_cast<Py_ssize_t>(count * sizeof(int32_t)));
}

// Reads a one-dimensional array of int32 through the buffer protocol, in place where it is contiguous.
class Int32View {
public:
    Int32View() = default;
    Int32View(const Int32View&) = delete;
    Int32View& operator=(const Int32View&) = delete;
    ~Int32View() {
        if (view_.obj != nullptr) PyBuffer_Release(&view_);
    }

    // False, with a TypeError set, when `object` is something else; `what` names it. May throw std::bad_alloc.
    bool open(PyObject* object, const char* what) {
        if (PyObject_GetBuffer(object, &view_, PyBUF_RECORDS_RO) != 0) {
            view_.obj = nullptr;
            return false;
        }
        if (!is_int32()) {
            Owned type(PyObject_GetAttrString(object, "dtype"));
            PyErr_Clear();
            PyErr_Format(PyExc_TypeError, "%s are int32, not %S", what,
                         type ? type.get() : reinterpret_cast<PyObject*>(Py_TYPE(object)));
            return false;
        }
        if (view_.ndim != 1) {
            PyErr_Format(PyExc_TypeError, "%s have one dimension, not %d", what, view_.ndim);
            return false;
        }
        size = static_cast<size_t>(view_.shape[0]);
        data = static_cast<const int32_t*>(view_.buf);
        const bool aligned = reinterpret_cast<uintptr_t>(view_.buf) % alignof(int32_t) == 0;
        if (size > 0 && (view_.strides[0] != sizeof(int32_t) || !aligned)) gather();
        return true;
    }

    const int32_t* data = nullptr;
    size_t size = 0;

private:
    bool is_int32() const noexcept {
        if (view_.itemsize != sizeof(int32_t) || view_.format == nullptr) return false;
        return std::strcmp(view_.format, "i") == 0 || std::strcmp(view_.format, "l") == 0;
    }

    void gather() {
        copy_.resize(size);
        const char* at = static_cast<const char*>(view_.buf);
        for (size_t index = 0; index < size; ++index, at += view_.strides[0]) {
            std::memcpy(&copy_[index], at, sizeof(int32_t));
        }
        data = copy_.data();
    }

    Py_buffer view_{};
    std::vector<int32_t> copy_;
};

// Reads arguments by place and by name, without building a tuple or a dict of them.
template <size_t count>
struct Arguments {
    PyObject* values[count] = {};

    // False, with a TypeError set, unless each of the first `required` is given, none twice, and nothing else.
    bool read(const char* function, const char* const (&names)[count], size_t required, PyObject* const* given,
              Py_ssize_t num_places, PyObject* keywords) {
        if (num_places > static_cast<Py_ssize_t>(count)) {
            PyErr_Format(PyExc_TypeError, "%s() takes at most %zu arguments (%zd given)", function, count, num_places);
            return false;
        }
        std::memcpy(values, given, static_cast<size_t>(num_places) * sizeof(PyObject*));
        const Py_ssize_t num_keywords = keywords == nullptr ? 0 : PyTuple_GET_SIZE(keywords);
        for (Py_ssize_t index = 0; index < num_keywords; ++index) {
            PyObject* keyword = PyTuple_GET_ITEM(keywords, index);
            size_t at = 0;
            while (at < count && PyUnicode_CompareWithASCIIString(keyword, names[at]) != 0) ++at;
            if (at == count || values[at] != nullptr) {
                PyErr_Format(PyExc_TypeError, "%s() got an unexpected or repeated argument '%U'", function, keyword);
                return false;
            }
            values[at] = given[num_places + index];
        }
        for (size_t index = 0; index < required; ++index) {
            if (values[index] == nullptr) {
                PyErr_Format(PyExc_TypeError, "%s() misses the argument '%s'", function, names[index]);
                return false;
            }
        }
        return true;
    }
};

// False, with an error set, when `object` is not an integer of 64 bits. An argument that was left out keeps `value`.
inline bool read_integer(PyObject* object, int64_t& value) {
    if (object == nullptr) return true;
    value = PyLong_AsLongLong(object);
    return value != -1 || PyErr_Occurred() == nullptr;
}

}  // namespace pawl
