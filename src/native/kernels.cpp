// The kernels of one instruction set: compiled once for each, with FASTSOFTMAX_ISA its name (see CMakeLists.txt).
#include "kernels.h"

#include "derivatives.h"
#include "long_rows.h"
#include "short_rows.h"

namespace {

// A row without a finite maximum; true where that is 'invalid' (+inf, or nothing but -inf) and not just NaN.
template <Function function, class T>
bool row_without_maximum(const T* x, T* y, ptrdiff_t n, T m) {
    constexpr T nan = std::numeric_limits<T>::quiet_NaN();
    bool has_nan = false;
    for (ptrdiff_t i = 0; i < n; ++i) has_nan |= std::isnan(x[i]);
    if constexpr (function == LOGSUMEXP) {
        *y = has_nan ? nan : m;
        return false;
    }
    for (ptrdiff_t i = 0; i < n; ++i) y[i] = nan;
    return !has_nan;
}

template <Function function, class T>
struct Call {
    const T* x;
    T* y;
    ptrdiff_t n;
    const double* temperature;
    ptrdiff_t stride;
    bool invalid = false;

    void advance(ptrdiff_t rows) {
        x += rows * n;
        y += rows * (function == LOGSUMEXP ? 1 : n);
        temperature += rows * stride;
    }

    void long_rows(ptrdiff_t count) {
        Rate<T> rate(*temperature);
        Inverse<T> inverse(*temperature);
        for (; count--; advance(1)) {
            if (stride) rate = Rate<T>(*temperature), inverse = Inverse<T>(*temperature);
            if constexpr (function == SOFTMAX) {
                if (tame_softmax_row(x, y, n, rate)) continue;
            } else {
                TameLog<T> row(x, n, rate);
                if (row.tame) {
                    if constexpr (function == LOG_SOFTMAX) log_softmax_of(x, y, n, row.max, inverse, row.log);
                    else *y = static_cast<T>(row.max + row.log);
                    continue;
                }
            }
            T m = maximum(x, n);
            if (!std::isfinite(m)) invalid |= row_without_maximum<function>(x, y, n, m);
            else if constexpr (function == SOFTMAX) softmax_row(x, y, n, m, rate);
            else if constexpr (function == LOG_SOFTMAX) log_softmax_of(x, y, n, m, inverse, log_of_rest(x, n, m, rate));
            else *y = static_cast<T>(m + log_of_rest(x, n, m, rate));
        }
    }

    template <int width>
    void tiles(ptrdiff_t count) {
        Tile<T, width> tile;
        tile.n = n;
        Rate<double> rate(*temperature);
        Inverse<double> inverse(*temperature);
        for (; count--; advance(width)) {
            tile.load(x);
            for (int l = 0; l < width; ++l) {
                if (stride) rate = Rate<double>(temperature[l]), inverse = Inverse<double>(temperature[l]);
                tile.set(l, rate, inverse);
            }
            if constexpr (function == SOFTMAX) tile.softmax(y);
            else if constexpr (function == LOG_SOFTMAX) tile.log_softmax(y);
            else tile.logsumexp(y);
            special_rows(tile);
        }
    }

    // x may have been overwritten, the tile holds it.
    template <int width>
    void special_rows(const Tile<T, width>& tile) {
        for (int l = 0; l < width; ++l) {
            if (std::isfinite(tile.max[l])) continue;
            T row[short_row];
            for (ptrdiff_t j = 0; j < n; ++j) row[j] = static_cast<T>(tile.x[j][l]);
            T* to = y + l * (function == LOGSUMEXP ? 1 : n);
            invalid |= row_without_maximum<function>(row, to, n, static_cast<T>(tile.max[l]));
        }
    }
};

template <Function function, class T>
bool rows(const Rows& r) {
    Call<function, T> call{static_cast<const T*>(r.x), static_cast<T*>(r.y), r.n, r.temperature, r.temperature_stride};
    if (r.n > short_row) {
        call.long_rows(r.count);
    } else {
        call.template tiles<16>(r.count / 16);
        call.template tiles<1>(r.count % 16);
    }
    return call.invalid;
}

template <class T>
bool vjp(const Rows& r) {
    auto p = static_cast<const T*>(r.x), g = static_cast<const T*>(r.g);
    auto y = static_cast<T*>(r.y);
    for (ptrdiff_t i = 0; i < r.count; ++i) vjp_row(p + i * r.n, g + i * r.n, y + i * r.n, r.n);
    return false;
}

template <class T>
bool jacobian(const Rows& r) {
    auto p = static_cast<const T*>(r.x);
    auto y = static_cast<T*>(r.y);
    for (ptrdiff_t i = 0; i < r.count; ++i) jacobian_row(p + i * r.n, y + i * r.n * r.n, r.n);
    return false;
}

// A part of each row, whose partition is known (or, with PARTITION, grows); the temperature is one for all.
template <Function function, class T>
bool parts(const Rows& r) {
    auto x = static_cast<const T*>(r.x);
    auto y = static_cast<T*>(r.y);
    Rate<T> rate(*r.temperature);
    Inverse<T> inverse(*r.temperature);
    for (ptrdiff_t i = 0; i < r.count; ++i, x += r.n, y += r.n) {
        Partition& p = r.partition[i];
        if constexpr (function == PARTITION) add_to(p, x, r.n, Shift<T>(static_cast<T>(p.max), rate), rate);
        else if constexpr (function == SOFTMAX_PART) softmax_part(x, y, r.n, p, rate);
        else log_softmax_part(x, y, r.n, p, rate, inverse);
    }
    return false;
}

}  // namespace

#define JOIN(a, b) a##b
#define TABLE(isa) JOIN(kernels_, isa)
#define TEXT(isa) #isa
#define NAME(isa) TEXT(isa)

const Kernels TABLE(FASTSOFTMAX_ISA) = {
    NAME(FASTSOFTMAX_ISA),
    {
        {rows<SOFTMAX, float>, rows<SOFTMAX, double>},
        {rows<LOG_SOFTMAX, float>, rows<LOG_SOFTMAX, double>},
        {rows<LOGSUMEXP, float>, rows<LOGSUMEXP, double>},
        {vjp<float>, vjp<double>},
        {jacobian<float>, jacobian<double>},
        {parts<PARTITION, float>, parts<PARTITION, double>},
        {parts<SOFTMAX_PART, float>, parts<SOFTMAX_PART, double>},
        {parts<LOG_SOFTMAX_PART, float>, parts<LOG_SOFTMAX_PART, double>},
    },
};
