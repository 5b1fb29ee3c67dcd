// Finds a node by its parent and the first page of its key: one table for the whole tree.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "node.h"

namespace pawl {

// Linear probing in a table that is at most half full; removal moves what follows back, so nothing is left behind and
// a lookup costs the same however much has come and gone.
//
// The hash is multilinear (Carter and Wegman 1979; Lemire and Kaser 2014, "Strongly universal string hashing is fast"):
// a sum of symbols times secret random numbers. Clients choose token ids, and whatever they choose, two pages collide
// with probability 2^-32, so nobody can make lookups slow. No result depends on the secret, only the time it takes.
class Children {
public:
    Children(size_t page_size, uint64_t seed) : page_size_(page_size), keys_(page_size + NUM_OTHER_SYMBOLS) {
        for (uint64_t& key : keys_) key = next_random(seed);
        clear();
    }

    Node* find(const Node* parent, const int32_t* page) const noexcept {
        const uint32_t hash = hash_of(parent, page);
        for (size_t at = hash & mask(); slots_[at].node != nullptr; at = (at + 1) & mask()) {
            Node* node = slots_[at].node;
            if (slots_[at].hash == hash && node->parent == parent && starts_with(node, page)) return node;
        }
        return nullptr;
    }

    // Room for one more. The only function that can fail: throws std::bad_alloc, without a change.
    void reserve() {
        if (2 * (size_ + 1) <= slots_.size()) return;
        std::vector<Slot> old(2 * slots_.size());
        old.swap(slots_);
        for (const Slot& slot : old) {
            if (slot.node != nullptr) slots_[free_slot(slot.hash)] = slot;
        }
    }

    void add(Node* node) noexcept {
        node->hash = hash_of(node->parent, node->edge.tokens(page_size_));
        slots_[free_slot(node->hash)] = {node, node->hash};
        ++size_;
    }

    // `upper` takes the place of `lower`, whose parent and first page it has.
    void replace(const Node* lower, Node* upper) noexcept {
        upper->hash = lower->hash;
        slots_[slot_of(lower)].node = upper;
    }

    void remove(const Node* node) noexcept {
        size_t hole = slot_of(node);
        for (size_t at = (hole + 1) & mask(); slots_[at].node != nullptr; at = (at + 1) & mask()) {
            const size_t home = slots_[at].hash & mask();
            if (((at - home) & mask()) >= ((at - hole) & mask())) {
                slots_[hole] = slots_[at];
                hole = at;
            }
        }
        slots_[hole] = {};
        --size_;
    }

    void clear() {
        std::vector<Slot>(SMALLEST).swap(slots_);
        size_ = 0;
    }

    size_t size() const noexcept { return size_; }

private:
    struct Slot {
        Node* node = nullptr;
        uint32_t hash = 0;
    };

    static constexpr size_t SMALLEST = 64;
    static constexpr size_t NUM_OTHER_SYMBOLS = 3;  // A constant, and two halves of the parent's serial number.

    // SplitMix64 (Steele, Lea and Flood 2014).
    static uint64_t next_random(uint64_t& state) noexcept {
        uint64_t mixed = (state += 0x9E3779B97F4A7C15u);
        mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9u;
        mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EBu;
        return mixed ^ (mixed >> 31);
    }

    uint32_t hash_of(const Node* parent, const int32_t* page) const noexcept {
        const uint64_t* keys = keys_.data();
        uint64_t sum = keys[0] + keys[1] * static_cast<uint32_t>(parent->serial) + keys[2] * (parent->serial >> 32);
        keys += NUM_OTHER_SYMBOLS;
        for (size_t index = 0; index < page_size_; ++index) sum += keys[index] * static_cast<uint32_t>(page[index]);
        return static_cast<uint32_t>(sum >> 32);
    }

    bool starts_with(const Node* node, const int32_t* page) const noexcept {
        return std::memcmp(node->edge.tokens(page_size_), page, page_size_ * sizeof(int32_t)) == 0;
    }

    size_t mask() const noexcept { return slots_.size() - 1; }

    size_t free_slot(uint32_t hash) const noexcept {
        size_t at = hash & mask();
        while (slots_[at].node != nullptr) at = (at + 1) & mask();
        return at;
    }

    size_t slot_of(const Node* node) const noexcept {
        size_t at = node->hash & mask();
        while (slots_[at].node != node) at = (at + 1) & mask();
        return at;
    }

    size_t page_size_;
    std::vector<uint64_t> keys_;
    std::vector<Slot> slots_;
    size_t size_ = 0;
};

}  // namespace pawl
