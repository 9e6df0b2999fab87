// Cross-entropy and its gradient.
#include "gathered.h"
#include "loss_rows.h"

namespace {

template <class T>
bool cross_entropy(const Rows& r) {
    LossRows<T> rows(r);
    if (r.n > middle_row_of<CROSS_ENTROPY, T>) rows.long_rows(r.count);
    else if (r.n > short_row_of<CROSS_ENTROPY, T>) rows.template short_rows<false>(r.count);
    else if (are_few_losses<T>(r)) rows.few_rows(r.count);
    else rows.template short_rows<true>(r.count);
    return rows.invalid;
}

// Of columns, or of 16-bit floats, without weights: some at a time become rows, of float32, and their gradients go back.
template <class T>
bool gathered_cross_entropy(const Rows& r) {
    using Work = std::conditional_t<sizeof(T) == 2, float, T>;
    const ptrdiff_t n = r.n, most = r.after > 1 ? columns_at_a_time(n, r.after) : rows_at_a_time(n);
    auto x = static_cast<Work*>(r.scratch), y = x + most * n, q = y + most * n;
    bool invalid = false;
    each_tile(r, most, [&](ptrdiff_t first, ptrdiff_t count, ptrdiff_t offset) {
        auto take = [=](const void* from, Work* to) {
            auto rows = static_cast<const T*>(from) + offset;
            if (r.after > 1) return gather(rows, r.after, to, n, count);
            each_chunk(count * n, r.threads, [=](ptrdiff_t i, ptrdiff_t some) { convert(rows + i, to + i, some); });
        };
        take(r.x, x);
        if (r.v) take(r.v, q);
        Losses losses = *r.losses;
        if (losses.index) losses.index += first;
        losses.loss += first;
        Rows rows{x, r.y ? y : nullptr, count, n};
        rows.v = r.v ? q : nullptr, rows.losses = &losses, rows.threads = r.threads;
        invalid |= cross_entropy<Work>(rows);
        if (!r.y) return;
        T* to = static_cast<T*>(r.y) + offset;
        if (r.after > 1) return scatter(y, to, r.after, n, count);
        each_chunk(count * n, r.threads, [=](ptrdiff_t i, ptrdiff_t some) { convert(y + i, to + i, some); });
    });
    return invalid;
}

template <class T>
bool any_cross_entropy(const Rows& r) {
    if constexpr (sizeof(T) > 2)
        if (r.after == 1) return cross_entropy<T>(r);
    return gathered_cross_entropy<T>(r);
}

}  // namespace

namespace FASTSOFTMAX_ISA {

const Kernel cross_entropy_kernels[TYPES] = {any_cross_entropy<float>, any_cross_entropy<double>, any_cross_entropy<Float16>,
                                             any_cross_entropy<BFloat16>};

}  // namespace FASTSOFTMAX_ISA
