// The nodes of the compiled radix tree. What they mean is said in memory/prefix/node.py, which is the reference.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>

namespace pawl {

constexpr int64_t NO_PRIORITY = std::numeric_limits<int64_t>::min();

// What decides when a node leaves, under every policy but lru.
struct Rank {
    int64_t created = 0;
    int64_t used = 0;
    int64_t hits = 0;
    int64_t priority = NO_PRIORITY;
    int64_t entry = 0;  // Number of the entry with which it waits to leave; 0 while it may not.
    size_t place = 0;   // Where in the heap that entry is.
};

// Pages and token ids of an edge, in one allocation:
//
//     block:  [ page ids: capacity ] [ token ids: capacity * page_size ]
//               └ first ┘└ count ┘     └ first ┘└ count ┘ * page_size
//
// A split cuts pages off the front by moving `first`, so it costs what the prompt that asked for it costs, however long
// the edge is. What is cut off is given back once it is as much as what is left: at most half of a block is unused.
struct Edge {
    int32_t* block = nullptr;
    size_t capacity = 0;
    size_t first = 0;
    size_t count = 0;

    const int32_t* pages() const { return block + first; }
    const int32_t* tokens(size_t page_size) const { return block + capacity + first * page_size; }

    // Copy `num_pages` pages and their tokens. Throws std::bad_alloc, without a change.
    void assign(const int32_t* from_pages, const int32_t* from_tokens, size_t num_pages, size_t page_size) {
        auto* made = static_cast<int32_t*>(std::malloc(num_pages * (1 + page_size) * sizeof(int32_t)));
        if (made == nullptr) throw std::bad_alloc();
        std::memcpy(made, from_pages, num_pages * sizeof(int32_t));
        std::memcpy(made + num_pages, from_tokens, num_pages * page_size * sizeof(int32_t));
        std::free(block);
        block = made;
        capacity = count = num_pages;
        first = 0;
    }

    void cut_front(size_t num_pages, size_t page_size) noexcept {
        first += num_pages;
        count -= num_pages;
        if (first < count) return;
        try {
            assign(pages(), tokens(page_size), count, page_size);
        } catch (const std::bad_alloc&) {
            // Then the block stays larger than it needs to be.
        }
    }

    Edge() = default;
    Edge(const Edge&) = delete;
    Edge& operator=(const Edge&) = delete;
    ~Edge() { std::free(block); }
};

struct Node {
    Node* parent = nullptr;
    uint64_t serial = 0;  // Never used twice in a tree.
    Edge edge;
    uint32_t hash = 0;  // Of the parent's serial and the first page of tokens.
    int64_t holds = 0;  // Own holders plus children that are held.
    int64_t fence = 0;  // Newest step that may still touch the pages.
    // Children in the order in which they came.
    Node* first_child = nullptr;
    Node* last_child = nullptr;
    Node* previous = nullptr;
    Node* next = nullptr;
    // The ring of the lru policy; a node that is not in it is its own neighbour.
    Node* older = this;
    Node* newer = this;
    Rank rank;
};

// Top of one namespace: no pages, and held once more than its children make it.
struct Root : Node {
    explicit Root(void* namespace_object) : label(namespace_object) { holds = 1; }
    void* label;  // Whoever made the root knows what it is.
};

}  // namespace pawl
