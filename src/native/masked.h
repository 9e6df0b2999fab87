// Elements of which only some count: -inf takes the place of the others, and the result there is what it is for nothing.
#pragma once
#include <algorithm>
#include <bit>
#include <limits>

#include "half.h"
#include "kernels.h"

namespace {

// y is x where it counts, and `other` elsewhere. Of a choice, or of bools, compilers make no vectors.
template <class T>
void keep_where(const T* x, const bool* keep, T* y, ptrdiff_t n, T other) {
    using Bits = std::conditional_t<sizeof(T) == 8, uint64_t, std::conditional_t<sizeof(T) == 4, uint32_t, uint16_t>>;
    const Bits of_other = std::bit_cast<Bits>(other);
    auto counts = reinterpret_cast<const unsigned char*>(keep);
#pragma omp simd
    for (ptrdiff_t j = 0; j < n; ++j) {
        Bits mask = static_cast<Bits>(-static_cast<Bits>(counts[j] != 0));
        if constexpr (sizeof(T) == 2) y[j].bits = (x[j].bits & mask) | (of_other & ~mask);
        else y[j] = std::bit_cast<T>((std::bit_cast<Bits>(x[j]) & mask) | (of_other & ~mask));
    }
}

// Some rows at a time, with -inf for what does not count; where nothing does, the result is that for nothing.
template <Function function, class T, Kernel all_rows>
bool rows_where(const Rows& r) {
    constexpr bool reduces = function == LOGSUMEXP;
    constexpr ptrdiff_t most = rows_at_a_time(1);
    const T minus_inf(-std::numeric_limits<float>::infinity()), left_out = function == SOFTMAX ? T(0.0f) : minus_inf;
    bool invalid = false, any[most];
    for (ptrdiff_t first = r.first, count; first < r.first + r.count; first += count) {
        count = std::min(rows_at_a_time(r.n), r.first + r.count - first);
        auto x = static_cast<const T*>(r.x) + first * r.n;
        auto y = static_cast<T*>(r.y) + first * (reduces ? 1 : r.n);
        auto keep = r.where + first * r.n;
        auto kept = reduces ? static_cast<T*>(r.scratch) : y;
        keep_where(x, keep, kept, count * r.n, minus_inf);
        for (ptrdiff_t i = 0; i < count; ++i) {
            any[i] = std::any_of(keep + i * r.n, keep + (i + 1) * r.n, [](bool k) { return k; });
            if (!any[i]) std::fill_n(kept + i * r.n, r.n, T(0.0f));
        }
        Rows some{kept, y, count, r.n, r.temperature + first * r.temperature_stride, r.temperature_stride};
        some.threads = r.threads;
        invalid |= all_rows(some);
        if constexpr (reduces)
            for (ptrdiff_t i = 0; i < count; ++i) y[i] = any[i] ? y[i] : minus_inf;
        else keep_where(y, keep, y, count * r.n, left_out);
    }
    return invalid;
}

// Whole blocks of columns at a time, or some columns of one.
template <Function function, class T, Kernel of_columns>
bool columns_where(const Rows& r) {
    constexpr bool reduces = function == LOGSUMEXP;
    const T minus_inf(-std::numeric_limits<float>::infinity()), left_out = function == SOFTMAX ? T(0.0f) : minus_inf;
    const ptrdiff_t n = r.n, most = masked_at_a_time(r), end = r.first + r.count;
    auto kept = static_cast<T*>(r.scratch), result = kept + most * n;
    unsigned char any[masked_columns];  // a mask may have other bytes than 0 and 1
    bool invalid = false;
    for (ptrdiff_t first = r.first, some; first < end; first += some) {
        const ptrdiff_t column = first % r.after, offset = (first - column) * n + column;
        const bool whole = column == 0 && r.after <= std::min(most, end - first);
        const ptrdiff_t width = whole ? r.after : std::min({most, r.after - column, end - first});
        const ptrdiff_t blocks = whole ? std::min(most, end - first) / width : 1, lines = blocks * n;
        some = blocks * width;
        auto x = static_cast<const T*>(r.x) + offset;
        auto y = static_cast<T*>(r.y) + (reduces ? first : offset);
        auto keep = r.where + offset;
        auto each_line = [=](auto visit) {  // all of whole blocks as one
            if (whole) return visit(0, 0, lines * width);
            for (ptrdiff_t i = 0; i < lines; ++i) visit(i * r.after, i * width, width);
        };
        each_line([=](ptrdiff_t from, ptrdiff_t to, ptrdiff_t length) { keep_where(x + from, keep + from, kept + to, length, minus_inf); });
        auto counts = reinterpret_cast<const unsigned char*>(keep);
        std::fill_n(any, some, 0);
        for (ptrdiff_t b = 0; b < blocks; ++b) {
            unsigned char* of_block = any + b * width;
            for (ptrdiff_t j = 0; j < n; ++j, counts += r.after) {
#pragma omp simd
                for (ptrdiff_t c = 0; c < width; ++c) of_block[c] |= counts[c];
            }
            for (ptrdiff_t c = 0; c < width; ++c)
                for (ptrdiff_t j = 0; !of_block[c] && j < n; ++j) kept[(b * n + j) * width + c] = T(0.0f);
        }
        Rows part{kept, reduces ? y : result, some, n, r.temperature + first * r.temperature_stride, r.temperature_stride};
        part.after = width, part.scratch = result + most * n, part.threads = r.threads;
        invalid |= of_columns(part);
        if constexpr (reduces)
            for (ptrdiff_t c = 0; c < some; ++c) y[c] = any[c] ? y[c] : minus_inf;
        else each_line([=](ptrdiff_t to, ptrdiff_t from, ptrdiff_t length) { keep_where(result + from, keep + to, y + to, length, left_out); });
    }
    return invalid;
}

}  // namespace
