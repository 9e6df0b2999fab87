// What the module knows of the kernels: a range of rows in, rows out, one table per instruction set.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "threads.h"

enum Function {
    SOFTMAX,
    LOG_SOFTMAX,
    LOGSUMEXP,
    SOFTMAX_VJP,  // also the JVP: the Jacobian is symmetric
    SOFTMAX_VJP_DERIVATIVE,
    SOFTMAX_JACOBIAN,
    SOFTMAX_JACOBIAN_DIAGONAL,
    SOFTMAX_JACOBIAN_EIGENVALUES,  // of sorted probabilities, in float64
    LOG_SOFTMAX_VJP,
    LOG_SOFTMAX_JVP,
    LOG_SOFTMAX_JACOBIAN,
    PARTITION,         // of a part of each row: adds it to Rows::partition
    SOFTMAX_PART,      // of a part of each row, when the partition is complete
    LOG_SOFTMAX_PART,
    CROSS_ENTROPY,     // and its gradient
    FUNCTIONS
};
enum Type { FLOAT32, FLOAT64, FLOAT16, BFLOAT16, TYPES };

// A row's partition function relative to its largest element, known beforehand: `equal` elements are the largest, and
// the powers of the others sum to others + low, times the 2^K that the largest implies.
struct Partition {
    double max, others, low, equal;
};

// What cross_entropy takes beside logits and, of Rows, v: the probabilities that are the targets.
struct Losses {
    const int64_t* index;  // the targets, where they are classes
    const void* weight;    // of the classes
    int64_t ignored;       // the index of rows that do not count
    double kept, spread;   // a target's share in what is asked, and what is asked of every class beside it
    double z_loss, factor;  // factor: of the gradient
    double* loss;          // one a row
    bool after_blas;       // whose threads still spin
};

// Of an array that is not contiguous, whose rows are along its last axis: shape, and strides in bytes. None: ndim is 0.
struct Layout {
    int ndim = 0;
    const ptrdiff_t *shape = nullptr, *strides = nullptr;

    ptrdiff_t stride() const { return strides[ndim - 1]; }
    // Of the start of a row.
    ptrdiff_t offset(ptrdiff_t row) const {
        ptrdiff_t sum = 0;
        for (int i = ndim - 2; i > 0; --i) sum += row % shape[i] * strides[i], row /= shape[i];
        return ndim > 1 ? sum + row * strides[0] : 0;
    }
    // Whether all rows of n elements follow one another, with the same stride.
    bool is_one_row(ptrdiff_t n) const {
        for (ptrdiff_t i = ndim - 2, whole = n * stride(); i >= 0; whole *= shape[i--])
            if (strides[i] != whole) return false;
        return true;
    }
    // So many rows lie side by side, as columns do.
    ptrdiff_t neighbours(ptrdiff_t itemsize) const {
        return ndim > 1 && strides[ndim - 2] == itemsize && stride() > itemsize ? shape[ndim - 2] : 1;
    }
};

// `count` rows of `n` contiguous elements, one after the other, from row `first` on.
struct Rows {
    const void* x;  // of the derivatives: the probabilities
    void* y;        // n elements a row; logsumexp: one, Jacobians: n * n
    ptrdiff_t count, n;
    const double* temperature = nullptr;
    ptrdiff_t temperature_stride = 0;  // 0: one for all rows, 1: one for each
    const void *v = nullptr, *u = nullptr;  // the vectors that derivatives multiply
    Partition* partition = nullptr;    // one a row
    const Losses* losses = nullptr;
    // Along another axis than the last: rows are columns of x, of shape (count / after,
    // n, after); so of derivatives that multiply vectors.
    ptrdiff_t after = 1;
    const Layout* layouts = nullptr;  // of x, v and u, where one of them is not contiguous; y is
    void* scratch = nullptr;  // of `scratch_size`
    const bool* where = nullptr;  // of softmax, log_softmax, logsumexp: the elements that count, laid out as x
    ptrdiff_t first = 0;
    int threads = 1;  // that share each row
    bool streams = false;  // y is too large to stay in the cache
};

// visit(first, count, offset) for at most `most` rows at a time, the first of which starts `offset` elements after the array;
// columns are neighbours.
template <class Visit>
void each_tile(const Rows& r, ptrdiff_t most, Visit visit) {
    ptrdiff_t column = r.first % r.after;
    for (ptrdiff_t first = r.first, count; first < r.first + r.count; first += count) {
        count = std::min(most, r.first + r.count - first);
        if (r.after > 1) count = std::min(count, r.after - column);
        visit(first, count, (first - column) * r.n + column);
        column = column + count < r.after ? column + count : 0;
    }
}

// So few columns side by side that some blocks of them are worth to be laid beside each other.
inline bool has_narrow_blocks(const Rows& r) { return r.after > 1 && r.after < 64 && r.count >= 2 * r.after; }

// How many vectors a derivative multiplies.
constexpr int vectors(Function f) {
    return f == SOFTMAX_VJP_DERIVATIVE ? 2 : f == SOFTMAX_VJP || f == LOG_SOFTMAX_VJP || f == LOG_SOFTMAX_JVP;
}

// How many columns (of so many), or rows, of n elements are gathered in scratch at a time, and what that takes. Columns: some lines
// of the cache, few of which wait for the next ones.
constexpr ptrdiff_t columns_at_a_time(ptrdiff_t n, ptrdiff_t of) {
    return n > chunk ? std::min<ptrdiff_t>(16, of) : std::clamp<ptrdiff_t>((1 << 16) / n / 16 * 16, 16, 128);
}
constexpr ptrdiff_t rows_at_a_time(ptrdiff_t n) { return std::max<ptrdiff_t>(1, (1 << 11) / n); }

// Of columns with a mask, which are computed in scratch that stays near.
constexpr ptrdiff_t masked_columns = 1024;
constexpr ptrdiff_t masked_at_a_time(const Rows& r) {
    return std::min(r.count, std::clamp<ptrdiff_t>((1 << 17) / r.n / 16 * 16, 16, masked_columns));
}

// Of softmax of rows up to this length, where scratch is free for them, the powers (16 bits) or their tails (float64) are kept; else
// they are computed twice.
constexpr ptrdiff_t longest_kept = 1 << 20;

// In bytes, for elements of a size.
constexpr ptrdiff_t scratch_size(Function f, const Rows& r, ptrdiff_t itemsize) {
    ptrdiff_t columns = columns_at_a_time(r.n, r.layouts ? r.count : r.after) * r.n, some = rows_at_a_time(r.n) * r.n;
    if (r.layouts) some = std::max(some, columns);
    if (vectors(f)) {
        if (r.after == 1 && itemsize > 2 && !r.layouts) return 0;
        return (2 + vectors(f)) * (r.after > 1 ? columns : some) * std::max<ptrdiff_t>(itemsize, 4);
    }
    if (f == CROSS_ENTROPY) {
        if (r.after == 1 && itemsize > 2) return 0;
        return 3 * (r.after > 1 ? columns : some) * std::max<ptrdiff_t>(itemsize, 4);
    }
    if (r.after == 1 && !r.layouts && !r.where && f == SOFTMAX && itemsize != 4 && r.n > chunk && r.n <= longest_kept)
        return r.n * std::max<ptrdiff_t>(itemsize, 4);
    if (r.after > 1 && r.where) {
        Rows part = r;
        part.where = nullptr, part.count = masked_at_a_time(r), part.after = std::min(r.after, part.count);
        return 2 * part.count * r.n * itemsize + scratch_size(f, part, itemsize);
    }
    return (r.after > 1 ? 2 * columns : r.layouts ? some : r.where && f == LOGSUMEXP ? some : 0) * itemsize;
}

using Kernel = bool (*)(const Rows&);  // true where a row has no answer: NumPy's 'invalid'

struct Kernels {
    const char* name;
    const Kernel* rows[FUNCTIONS];  // of TYPES each
};

namespace baseline { extern const Kernels kernels; }
namespace avx2 { extern const Kernels kernels; }
namespace avx512 { extern const Kernels kernels; }
namespace neon { extern const Kernels kernels; }

// What the source files beside the table have for it; each is compiled once for every instruction set.
#ifdef FASTSOFTMAX_ISA
namespace FASTSOFTMAX_ISA {
// forward.cpp
extern const Kernel softmax_kernels[TYPES], log_softmax_kernels[TYPES], logsumexp_kernels[TYPES], partition_kernels[TYPES],
    softmax_part_kernels[TYPES], log_softmax_part_kernels[TYPES];
// products.cpp
extern const Kernel softmax_vjp_kernels[TYPES], softmax_vjp_derivative_kernels[TYPES], log_softmax_vjp_kernels[TYPES],
    log_softmax_jvp_kernels[TYPES];
// jacobians.cpp
extern const Kernel softmax_jacobian_kernels[TYPES], softmax_jacobian_diagonal_kernels[TYPES],
    softmax_jacobian_eigenvalues_kernels[TYPES], log_softmax_jacobian_kernels[TYPES];
// losses.cpp
extern const Kernel cross_entropy_kernels[TYPES];
}
#endif
