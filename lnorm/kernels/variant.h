/* The kernels of one instruction set: everything below is compiled once for each element type. kernels.c defines ISA and
   BYTES and opens the target region; each name here stands for its own function or type in every variant. */

#define NAME(name) LNORM_JOIN(name, ISA, T)
#define Columns NAME(Columns)
#define D NAME(D)
#define Line NAME(Line)
#define Moments NAME(Moments)
#define Stats NAME(Stats)
#define Sum NAME(Sum)
#define Total NAME(Total)
#define V NAME(V)
#define View NAME(View)
#define add_block NAME(add_block)
#define add_column NAME(add_column)
#define add_squares NAME(add_squares)
#define add_terms NAME(add_terms)
#define add_to NAME(add_to)
#define add_up NAME(add_up)
#define add_wide NAME(add_wide)
#define affine NAME(affine)
#define affine_elements NAME(affine_elements)
#define affine_row NAME(affine_row)
#define affine_streamed NAME(affine_streamed)
#define backward_sums NAME(backward_sums)
#define backward_sweep NAME(backward_sweep)
#define block_width NAME(block_width)
#define centers_of_columns NAME(centers_of_columns)
#define fill NAME(fill)
#define fold NAME(fold)
#define fold_columns NAME(fold_columns)
#define forward NAME(forward)
#define forward_columns NAME(forward_columns)
#define gather NAME(gather)
#define get NAME(get)
#define lies_in_columns NAME(lies_in_columns)
#define load NAME(load)
#define mean_of_first NAME(mean_of_first)
#define pad NAME(pad)
#define place NAME(place)
#define put NAME(put)
#define scale_to_one NAME(scale_to_one)
#define scatter NAME(scatter)
#define settle NAME(settle)
#define settle_slowly NAME(settle_slowly)
#define standardize NAME(standardize)
#define stats_of NAME(stats_of)
#define store NAME(store)
#define stream_to NAME(stream_to)
#define sweep_elements NAME(sweep_elements)
#define sweep_rows NAME(sweep_rows)
#define until_aligned NAME(until_aligned)
#define value_of NAME(value_of)
#define value_of_columns NAME(value_of_columns)
#define view_of NAME(view_of)
#define widen NAME(widen)

#define T float
#define T_SIZE 4
#define EPSILON 0x1p-23
#define SAFE_SQUARE 0x1p-80 /* below it, a σ² may rest on squares that float cannot hold */
#include "vec.h"
#include "rows.h"
#include "stats.h"
#include "columns.h"
#include "forward.h"
#include "backward.h"
#undef T
#undef T_SIZE
#undef EPSILON
#undef SAFE_SQUARE

#define T double
#define T_SIZE 8
#define EPSILON 0x1p-52
#define SAFE_SQUARE 0x1p-900
#include "vec.h"
#include "rows.h"
#include "stats.h"
#include "columns.h"
#include "forward.h"
#include "backward.h"
#undef T
#undef T_SIZE
#undef EPSILON
#undef SAFE_SQUARE
