// What moving pages does to the columns of a pool, and what pages add to the digest: memory/moves.py is the reference.
#pragma once

#include <algorithm>

#include "python.h"

namespace pawl {

// A column of numbers, in place: one dimension, contiguous.
template <typename Number>
class Column {
public:
    Column() = default;
    Column(const Column&) = delete;
    Column& operator=(const Column&) = delete;
    ~Column() {
        if (view_.obj != nullptr) PyBuffer_Release(&view_);
    }

    // False, with an error set, when `object` is something else, or cannot be written to where it must.
    bool open(PyObject* object, bool written) {
        const int flags = PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (written ? PyBUF_WRITABLE : 0);
        if (PyObject_GetBuffer(object, &view_, flags) != 0) {
            view_.obj = nullptr;
            return false;
        }
        if (view_.ndim != 1 || view_.itemsize != sizeof(Number) || std::strchr(formats(), view_.format[0]) == nullptr) {
            PyErr_Format(PyExc_TypeError, "a column has one dimension of '%c', not %d of '%s'", formats()[0],
                         view_.ndim, view_.format);
            return false;
        }
        data = static_cast<Number*>(view_.buf);
        size = static_cast<size_t>(view_.shape[0]);
        return true;
    }

    Number* data = nullptr;
    size_t size = 0;

private:
    static constexpr const char* formats() {
        return sizeof(Number) == sizeof(int64_t) ? "lq" : sizeof(Number) == sizeof(int32_t) ? "il" : "?";
    }

    Py_buffer view_{};
};

// The columns of a pool, and the pages that move. In the order of arguments: pages, refcount, in_cache, keys.
struct Moved {
    Int32View pages;
    Column<int32_t> refcount;
    Column<bool> in_cache;
    Column<int64_t> keys;

    bool open(const char* function, PyObject* const* given, Py_ssize_t count) {
        if (count != 4) {
            PyErr_Format(PyExc_TypeError, "%s() takes 4 arguments (%zd given)", function, count);
            return false;
        }
        if (!pages.open(given[0], "pages") || !refcount.open(given[1], true) || !in_cache.open(given[2], true) ||
            !keys.open(given[3], false)) {
            return false;
        }
        const size_t total = std::min({refcount.size, in_cache.size, keys.size});
        for (size_t index = 0; index < pages.size; ++index) {
            if (static_cast<size_t>(pages.data[index]) >= total) {
                PyErr_Format(PyExc_IndexError, "page %d of %zu", pages.data[index], total);
                return false;
            }
        }
        return true;
    }

    // Their keys, added up mod 2^64.
    PyObject* weight() const {
        uint64_t sum = 0;
        for (size_t index = 0; index < pages.size; ++index) sum += static_cast<uint64_t>(keys.data[pages.data[index]]);
        return PyLong_FromLongLong(static_cast<int64_t>(sum));
    }
};

inline PyObject* take_pages(PyObject*, PyObject* const* given, Py_ssize_t count) {
    return guarded([&]() -> PyObject* {
        Moved moved;
        if (!moved.open("take", given, count)) return nullptr;
        PyObject* weight = moved.weight();
        if (weight == nullptr) return nullptr;
        for (size_t index = 0; index < moved.pages.size; ++index) moved.refcount.data[moved.pages.data[index]] = 1;
        return weight;
    });
}

// One more referrer of pages of which each is cached, or none is; None where that is not so.
inline PyObject* refer(const char* function, bool cached, PyObject* const* given, Py_ssize_t count) {
    return guarded([&]() -> PyObject* {
        Moved moved;
        if (!moved.open(function, given, count)) return nullptr;
        const Int32View& pages = moved.pages;
        for (size_t index = 0; index < pages.size; ++index) {
            const int32_t page = pages.data[index];
            if (moved.in_cache.data[page] != cached || (!cached && moved.refcount.data[page] == 0)) Py_RETURN_NONE;
        }
        PyObject* weight = moved.weight();
        if (weight == nullptr) return nullptr;
        for (size_t index = 0; index < pages.size; ++index) {
            ++moved.refcount.data[pages.data[index]];
            moved.in_cache.data[pages.data[index]] = true;
        }
        return weight;
    });
}

inline PyObject* share_pages(PyObject*, PyObject* const* given, Py_ssize_t count) {
    return refer("share", true, given, count);
}

inline PyObject* adopt_pages(PyObject*, PyObject* const* given, Py_ssize_t count) {
    return refer("adopt", false, given, count);
}

inline PyObject* worth_of_pages(PyObject*, PyObject* const* given, Py_ssize_t count) {
    return guarded([&]() -> PyObject* {
        Int32View pages;
        Column<int64_t> places, keys;
        if (count != 3) return PyErr_Format(PyExc_TypeError, "worth() takes 3 arguments (%zd given)", count);
        if (!pages.open(given[0], "pages") || !places.open(given[1], false) || !keys.open(given[2], false)) {
            return nullptr;
        }
        if (places.size != pages.size) {
            return PyErr_Format(PyExc_ValueError, "%zu places of %zu pages", places.size, pages.size);
        }
        uint64_t sum = 0;
        for (size_t index = 0; index < pages.size; ++index) {
            const auto page = static_cast<size_t>(pages.data[index]);
            if (page >= keys.size) return PyErr_Format(PyExc_IndexError, "page %d of %zu", pages.data[index], keys.size);
            sum += static_cast<uint64_t>(places.data[index]) * static_cast<uint64_t>(keys.data[page]);
        }
        return PyLong_FromLongLong(static_cast<int64_t>(sum));
    });
}

inline PyCFunction of_pages(PyObject* (*function)(PyObject*, PyObject* const*, Py_ssize_t)) {
    return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

inline PyMethodDef move_functions[] = {
    {"take", of_pages(take_pages), METH_FASTCALL, "Free pages have one referrer."},
    {"share", of_pages(share_pages), METH_FASTCALL, "Cached pages have one more referrer."},
    {"adopt", of_pages(adopt_pages), METH_FASTCALL, "Owned pages are cached."},
    {"worth", of_pages(worth_of_pages), METH_FASTCALL, "What pages add to the digest, each in its place."},
    {},
};

}  // namespace pawl
