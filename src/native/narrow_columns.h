// Few columns side by side, of many blocks: the blocks are laid beside each other in scratch, as a wider one, or as rows.
#pragma once
#include "gathered.h"

namespace {

constexpr ptrdiff_t packed = 1536;  // elements at a time

// A tile of their own would be all beginning and end. (Wide and long enough ones are computed faster than copied.)
template <class T>
bool are_narrow(const Rows& r) {
    ptrdiff_t most = r.after < 16 ? packed / 2 : 1152 / static_cast<ptrdiff_t>(sizeof(T));
    return has_narrow_blocks(r) && r.n * r.after <= most;
}

// The j-th elements of all blocks, one block after the other, become row j of y.
template <class T>
void pack(const T* x, T* y, ptrdiff_t n, ptrdiff_t after, ptrdiff_t blocks) {
    for (ptrdiff_t b = 0; b < blocks; ++b)
        for (ptrdiff_t j = 0; j < n; ++j, x += after) {
            fetch<false>(x + block, after);
            copy_few(x, y + (j * blocks + b) * after, after);
        }
}

// And back.
template <class T>
void unpack(const T* x, T* y, ptrdiff_t n, ptrdiff_t after, ptrdiff_t blocks) {
    for (ptrdiff_t b = 0; b < blocks; ++b)
        for (ptrdiff_t j = 0; j < n; ++j, y += after) {
            fetch<true>(y + block, after);
            copy_few(x + (j * blocks + b) * after, y, after);
        }
}

// Whether they are faster as rows, though these are transposed.
template <class T>
bool are_narrow_rows(const Rows& r) {
    return sizeof(T) == 8 ? r.n > 31 && r.after < 8 : r.after < 5 ? r.n > 16 : r.n > 31 && r.after < 16;
}

// Blocks to rows.
template <class T>
void to_narrow_rows(const T* x, T* y, ptrdiff_t n, ptrdiff_t after, ptrdiff_t blocks) {
    for (ptrdiff_t b = 0, size = n * after; b < blocks; ++b, x += size, y += size) {
        fetch<false>(x + packed, size);
        gather(x, after, y, n, after);
    }
}

// And back.
template <class T>
void from_narrow_rows(const T* x, T* y, ptrdiff_t n, ptrdiff_t after, ptrdiff_t blocks) {
    for (ptrdiff_t b = 0, size = n * after; b < blocks; ++b, x += size, y += size) {
        fetch<true>(y + packed, size);
        scatter(x, y, after, n, after);
    }
}

// From a whole block on.
template <Function function, class T, Kernel kernel>
bool narrow_columns(const Rows& r) {
    T x[packed], y[packed], v[vectors(function) > 0 ? packed : 1], u[vectors(function) > 1 ? packed : 1];
    const ptrdiff_t n_results = function == LOGSUMEXP ? 1 : r.n;
    bool invalid = false, as_rows = are_narrow_rows<T>(r);
    for (ptrdiff_t first = r.first, count; first < r.first + r.count; first += count) {
        ptrdiff_t blocks = std::min(packed / (r.n * r.after), (r.first + r.count - first) / r.after);
        count = blocks * r.after;
        auto pack_from = [&](const void* a, T* to) {
            auto from = static_cast<const T*>(a) + first * r.n;
            if (as_rows) to_narrow_rows(from, to, r.n, r.after, blocks);
            else pack(from, to, r.n, r.after, blocks);
        };
        pack_from(r.x, x);
        if constexpr (vectors(function) > 0) pack_from(r.v, v);
        if constexpr (vectors(function) > 1) pack_from(r.u, u);
        Rows part = r;
        part.x = x, part.v = v, part.u = u, part.y = y;
        part.first = 0, part.count = count, part.after = as_rows ? 1 : count, part.streams = false;
        if (r.temperature) part.temperature = r.temperature + first * r.temperature_stride;
        invalid |= kernel(part);
        T* to = static_cast<T*>(r.y) + first * n_results;
        if (as_rows && function == LOGSUMEXP) std::copy_n(y, count, to);
        else if (as_rows) from_narrow_rows(y, to, r.n, r.after, blocks);
        else unpack(y, to, n_results, r.after, blocks);
    }
    return invalid;
}

}  // namespace
