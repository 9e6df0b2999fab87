// What multiplies vectors by Jacobians.
#include "products.h"

#include <algorithm>

#include "anchored_columns.h"
#include "far_products.h"
#include "few_elements.h"
#include "gathered.h"
#include "half_products.h"
#include "kernels.h"
#include "log_columns.h"
#include "narrow_columns.h"
#include "product_columns.h"

namespace {

// With one vector.
template <Function function>
constexpr bool is_product = vectors(function) == 1;

// Whether so many rows of n elements go side by side: of more than 8 elements, some that are less than a vector take longer so.
template <Function function, class T>
bool are_few(ptrdiff_t n, ptrdiff_t count) {
    bool always = n <= 8 || sizeof(T) == 8 || function == LOG_SOFTMAX_VJP;
    return n >= 2 && n <= few && (always || count >= (sizeof(T) == 2 ? 8 : 16));
}

// A row of the k-th array; without a layout, what starts `offset` elements after it.
template <class T>
Strided<T> row_of(const Rows& r, int k, const void* a, ptrdiff_t row, ptrdiff_t offset) {
    if (r.layouts && r.layouts[k].ndim) return strided_row<T>(a, r.layouts[k], row);
    return {static_cast<const T*>(a) + offset, r.after};
}

template <Function function, class T>
using ColumnsOf = std::conditional_t<function == LOG_SOFTMAX_VJP, LogProductColumns<T>, ProductColumns<T>>;

// Rows of so many elements are laid side by side, as columns. Those of logarithms soon are as fast as they lie, and so are those that no
// cache holds.
template <Function function, class T>
bool are_laid_aside(ptrdiff_t n, ptrdiff_t count, bool streams) {
    if (n <= few || count < 8) return false;
    if constexpr (function == LOG_SOFTMAX_VJP) return n <= 20 && !streams;
    else return sizeof(T) == 8 && n <= narrow_row;
}

template <Function function, class T>
void narrow_products(const T* p, const T* v, T* y, ptrdiff_t n, ptrdiff_t count, bool streams) {
    constexpr ptrdiff_t width = 64;
    alignas(64) T p_j[narrow_row * width], v_j[narrow_row * width], y_j[narrow_row * width];
    for (ptrdiff_t some; count > 0; count -= some, p += some * n, v += some * n, y += some * n) {
        some = std::min(width, count);
        ptrdiff_t next = some * n;
        if (streams) fetch<false>(p + next, next), fetch<false>(v + next, next), fetch<true>(y + next, next);
        to_columns(p, p_j, width, n, some), to_columns(v, v_j, width, n, some);
        ColumnsOf<function, T> columns(p_j, v_j, n, width, some);
        if (columns.means()) {
            columns.template products<function>(y_j);
            to_rows(y_j, width, y, n, some);
        } else {
            for (ptrdiff_t at = 0; at < some * n; at += n)
                if constexpr (function == LOG_SOFTMAX_VJP) log_softmax_vjp(p + at, v + at, y + at, n, 1, false);
                else product_with_jacobian<function, T>(p + at, v + at, y + at, n, 1, nullptr);
        }
    }
}

template <Function function, class T, class Result = T>
bool contiguous_products(const Rows& r) {
    ptrdiff_t n = r.n;
    if constexpr (is_product<function>) {
        auto from = [&](const void* a) { return static_cast<const T*>(a) + r.first * n; };
        T* y = static_cast<T*>(r.y) + r.first * n;
        bool always = n == 2 || sizeof(T) == 8 || function == LOG_SOFTMAX_VJP;
        if (sizeof(Result) == 2 ? n >= 2 && n <= few : are_few<function, T>(n, r.count) && (r.count >= 4 || always))
            return few_element_products<function, Result>(from(r.x), from(r.v), y, n, 1, r.count), false;
        if constexpr (sizeof(T) == 8 || function == LOG_SOFTMAX_VJP)
            if (are_laid_aside<function, T>(n, r.count, r.streams))
                return narrow_products<function>(from(r.x), from(r.v), y, n, r.count, r.streams), false;
        if constexpr (function == LOG_SOFTMAX_VJP) {
            if (n > few && n <= short_row) return short_log_products(from(r.x), from(r.v), y, n, r.count), false;
        } else {
            if (n < long_product && (sizeof(T) == 4 || n > few))
                return short_products<function>(from(r.x), from(r.v), y, n, r.count), false;
        }
    }
    Stream<std::conditional_t<sizeof(T) == 8, double, float>> stream;
    for (ptrdiff_t i = r.first; i < r.first + r.count; ++i) {
        auto row = [&](int k, const void* a) { return row_of<T>(r, k, a, i, i * n).x; };
        const T *p = row(0, r.x), *v = row(1, r.v);
        auto y = static_cast<T*>(r.y) + i * n;
        if constexpr (function == SOFTMAX_VJP || function == LOG_SOFTMAX_JVP)
            product_with_jacobian<function>(p, v, y, n, r.threads, r.streams ? &stream : nullptr);
        else if constexpr (function == SOFTMAX_VJP_DERIVATIVE) softmax_vjp_derivative(p, v, row(2, r.u), y, n, r.threads);
        else log_softmax_vjp(p, v, y, n, r.threads, r.streams);
    }
    if (r.streams) end_streams();
    return false;
}

// With what follows asked for: to write it, where that is the 16-bit floats, else to read it.
template <class From, class To>
void convert_ahead(const From* from, To* to, ptrdiff_t n) {
    constexpr ptrdiff_t strip = 64;
    for (ptrdiff_t i = 0; i < n; i += strip) {
        if constexpr (sizeof(To) == 2) fetch<true>(to + n + i, strip);
        else fetch<false>(from + n + i, strip);
        convert(from + i, to + i, std::min(strip, n - i));
    }
}

// Of columns, of strided rows, or of 16-bit floats: some at a time, in scratch.
template <Function function, class T>
bool gathered_products(const Rows& r) {
    using Work = std::conditional_t<sizeof(T) == 2, float, T>;
    ptrdiff_t n = r.n, most = r.after > 1 ? columns_at_a_time(n, r.after) : rows_at_a_time(n);
    for (int i = 0; r.layouts && i < 1 + vectors(function); ++i) most = std::max(most, at_a_time<T>(r.layouts[i], n));
    auto scratch = static_cast<Work*>(r.scratch);
    each_tile(r, most, [&](ptrdiff_t first, ptrdiff_t some, ptrdiff_t offset) {
        auto gathered = [&](int i, const void* a) {
            Work* to = scratch + i * most * n;
            auto from = static_cast<const T*>(a) + offset;
            if (r.layouts && r.layouts[i - 1].ndim) gather_rows<T>(a, r.layouts[i - 1], first, to, n, some);
            else if (r.after > 1) gather(from, r.after, to, n, some);
            else convert_ahead(from, to, some * n);
            return to;
        };
        T* y = static_cast<T*>(r.y) + offset;
        Work* result = scratch;
        if constexpr (sizeof(T) > 2)
            if (r.after == 1) result = y;
        Rows part{gathered(1, r.x), result, some, n};
        part.v = gathered(2, r.v);
        if constexpr (vectors(function) == 2) part.u = gathered(3, r.u);
        part.threads = r.threads;
        contiguous_products<function, Work, T>(part);
        if (r.after > 1) scatter(result, y, r.after, n, some);
        else if constexpr (sizeof(T) == 2) convert_ahead(result, y, some * n);
    });
    return false;
}

template <Function function, class T>
void gathered_part(Rows r, ptrdiff_t first, ptrdiff_t count) {
    r.first = first, r.count = count;
    gathered_products<function, T>(r);
}

// Columns, some at a time: side by side, or, where they are not finite, gathered.
template <Function function, class T>
bool product_columns(const Rows& r) {
    using Columns = ColumnsOf<function, T>;
    each_tile(r, Columns::at_a_time(r.n), [&](ptrdiff_t first, ptrdiff_t some, ptrdiff_t offset) {
        auto from = [&](const void* a) { return static_cast<const T*>(a) + offset; };
        Columns columns(from(r.x), from(r.v), r.n, r.after, some);
        if (columns.means()) {
            columns.template products<function>(static_cast<T*>(r.y) + offset);
        } else {
            gathered_part<function, T>(r, first, some);
        }
    });
    return false;
}

template <Function function, class T>
bool columns_of_few(const Rows& r) {
    each_tile(r, r.count, [&](ptrdiff_t, ptrdiff_t some, ptrdiff_t offset) {
        auto from = [&](const void* a) { return static_cast<const T*>(a) + offset; };
        few_element_products<function, T>(from(r.x), from(r.v), static_cast<T*>(r.y) + offset, r.n, r.after, some);
    });
    return false;
}

// Whether rows are long, and their elements lie apart, but not beside those of other rows.
template <class T>
bool are_far(const Rows& r) {
    ptrdiff_t near = r.layouts ? far_row : 2048;  // bytes; few columns would be gathered whole, or, but for 8, make no vectors
    if (r.n * static_cast<ptrdiff_t>(sizeof(T)) <= near) return false;
    if (!r.layouts) return r.after > 1 && r.after <= most_far<T> && r.after != 8;
    return r.layouts[0].neighbours(sizeof(T)) == 1 && r.layouts[1].neighbours(sizeof(T)) == 1;
}

// Such rows; those whose mean is not finite are gathered whole.
template <Function function, class T>
bool far_products(const Rows& r) {
    using Far = std::conditional_t<function == LOG_SOFTMAX_VJP, LogFarProducts<T>, FarProducts<T>>;
    each_tile(r, r.after > 1 ? most_far<T> : 1, [&](ptrdiff_t first, ptrdiff_t some, ptrdiff_t offset) {
        auto from = [&](int k, const void* a) { return row_of<T>(r, k, a, first, offset); };
        Far rows{{from(0, r.x), from(1, r.v), r.n, some, r.threads}};
        if (rows.means()) return rows.template products<function>(static_cast<T*>(r.y) + offset, r.after);
        gathered_part<function, T>(r, first, some);
    });
    return false;
}

// Rows of 16-bit floats; those whose mean is not exact are gathered.
template <Function function, class T>
bool half_products(const Rows& r) {
    for (ptrdiff_t i = r.first, some = r.layouts ? 1 : r.count; i < r.first + r.count; i += some) {
        auto row = [&](int k, const void* a) { return row_of<T>(r, k, a, i, i * r.n).x; };
        auto gathered = [&](ptrdiff_t j) { gathered_part<function, T>(r, i + j, 1); };
        half_products<function>(row(0, r.x), row(1, r.v), static_cast<T*>(r.y) + i * r.n, r.n, some, r.threads, gathered);
    }
    return false;
}

// Whether rows are computed where they are: contiguous arrays, and long rows of others whose elements lie beside each other.
template <Function function, class T>
bool are_in_place(const Rows& r) {
    if (r.after > 1 || !r.layouts) return r.after == 1;
    auto is_whole = [](const Layout& layout) { return !layout.ndim || layout.stride() == sizeof(T); };
    return r.n >= long_product && std::all_of(r.layouts, r.layouts + 1 + vectors(function), is_whole);
}

template <Function function, class T>
bool products(const Rows& r) {
    bool go_few = is_product<function> && !r.layouts && are_few<function, T>(r.n, r.after);
    bool are_vectors = sizeof(T) == 8 && r.after >= 16 && r.after % 8 == 0;
    if (are_narrow<T>(r) && !(go_few && are_vectors)) return narrow_columns<function, T, products<function, T>>(r);
    bool in_place = are_in_place<function, T>(r);
    if constexpr (is_product<function>) {
        if (go_few) return columns_of_few<function, T>(r);
        bool are_columns = !in_place && !r.layouts && r.n > narrow_row;
        if (are_columns && are_better_rows<function, T>(r.n, r.after, r.after, sizeof(T) == 8 ? 8 : 16)) return gathered_products<function, T>(r);
        if (!in_place && are_far<T>(r)) return far_products<function, T>(r);
        if constexpr (sizeof(T) == 2)
            if (in_place) {
                if constexpr (function != LOG_SOFTMAX_VJP) {
                    if (r.n >= long_half_product<T>) return half_products<function, T>(r);
                } else if (r.n > chunk) {
                    return far_products<function, T>(r);
                }
            }
        if (r.after > few_columns) return product_columns<function, T>(r);
    }
    if constexpr (sizeof(T) > 2)
        if (in_place) return contiguous_products<function, T>(r);
    return gathered_products<function, T>(r);
}

}  // namespace

namespace FASTSOFTMAX_ISA {

#define PRODUCTS(f) {products<f, float>, products<f, double>, products<f, Float16>, products<f, BFloat16>}
const Kernel softmax_vjp_kernels[TYPES] = PRODUCTS(SOFTMAX_VJP);
const Kernel softmax_vjp_derivative_kernels[TYPES] = PRODUCTS(SOFTMAX_VJP_DERIVATIVE);
const Kernel log_softmax_vjp_kernels[TYPES] = PRODUCTS(LOG_SOFTMAX_VJP);
const Kernel log_softmax_jvp_kernels[TYPES] = PRODUCTS(LOG_SOFTMAX_JVP);

}  // namespace FASTSOFTMAX_ISA
