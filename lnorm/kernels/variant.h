/* The kernels of one instruction set: everything below is compiled once for each element type. kernels.c defines ISA and
   BYTES and opens the target region; each name here stands for its own function or type in every variant. */

#define NAME(name) LNORM_JOIN(name, ISA, T)
#define D NAME(D)
#define Four NAME(Four)
#define I NAME(I)
#define Lane NAME(Lane)
#define Lanes NAME(Lanes)
#define Line NAME(Line)
#define Progress NAME(Progress)
#define Row NAME(Row)
#define RowSums NAME(RowSums)
#define Seam NAME(Seam)
#define Stats NAME(Stats)
#define Strip NAME(Strip)
#define Sum NAME(Sum)
#define Sums NAME(Sums)
#define Total NAME(Total)
#define V NAME(V)
#define View NAME(View)
#define add_block NAME(add_block)
#define add_gradients NAME(add_gradients)
#define add_lanes NAME(add_lanes)
#define add_long_row_to_stats NAME(add_long_row_to_stats)
#define add_row NAME(add_row)
#define add_row_to_stats NAME(add_row_to_stats)
#define add_segment NAME(add_segment)
#define add_squares NAME(add_squares)
#define add_sum NAME(add_sum)
#define add_sums NAME(add_sums)
#define add_terms NAME(add_terms)
#define add_to NAME(add_to)
#define add_to_row NAME(add_to_row)
#define add_to_stats NAME(add_to_stats)
#define add_up NAME(add_up)
#define add_up_short NAME(add_up_short)
#define add_wide NAME(add_wide)
#define add_wide_squares NAME(add_wide_squares)
#define affine NAME(affine)
#define affine_across NAME(affine_across)
#define affine_streamed NAME(affine_streamed)
#define backward_sums NAME(backward_sums)
#define backward_sweep NAME(backward_sweep)
#define begin_at_seam NAME(begin_at_seam)
#define begin_row NAME(begin_row)
#define begin_stats NAME(begin_stats)
#define block_width NAME(block_width)
#define close_seam NAME(close_seam)
#define dx_across NAME(dx_across)
#define dx_of_four NAME(dx_of_four)
#define empty_lanes NAME(empty_lanes)
#define end_at_seam NAME(end_at_seam)
#define fetch NAME(fetch)
#define fill NAME(fill)
#define finish_row NAME(finish_row)
#define first_lanes NAME(first_lanes)
#define fold_pair NAME(fold_pair)
#define fold_registers NAME(fold_registers)
#define fold_rows NAME(fold_rows)
#define forward NAME(forward)
#define forward_one_by_one NAME(forward_one_by_one)
#define forward_rows NAME(forward_rows)
#define forward_strip NAME(forward_strip)
#define forward_together NAME(forward_together)
#define gather NAME(gather)
#define get NAME(get)
#define is_distant NAME(is_distant)
#define is_plain NAME(is_plain)
#define is_short NAME(is_short)
#define know NAME(know)
#define lie_alike NAME(lie_alike)
#define lie_together NAME(lie_together)
#define load NAME(load)
#define load_end NAME(load_end)
#define load_part NAME(load_part)
#define load_wide NAME(load_wide)
#define load_wide_part NAME(load_wide_part)
#define long_row NAME(long_row)
#define long_stats NAME(long_stats)
#define long_sums NAME(long_sums)
#define long_write NAME(long_write)
#define mean_of_rows NAME(mean_of_rows)
#define means_of_first NAME(means_of_first)
#define only_lanes NAME(only_lanes)
#define only_where NAME(only_where)
#define place NAME(place)
#define place_of NAME(place_of)
#define put NAME(put)
#define return_stats NAME(return_stats)
#define row_of NAME(row_of)
#define rows_together NAME(rows_together)
#define scale_to_one NAME(scale_to_one)
#define scatter NAME(scatter)
#define set_means NAME(set_means)
#define settle NAME(settle)
#define settle_rest NAME(settle_rest)
#define settle_rows NAME(settle_rows)
#define settle_slowly NAME(settle_slowly)
#define square_root NAME(square_root)
#define standardize NAME(standardize)
#define stats_of NAME(stats_of)
#define stats_of_strip NAME(stats_of_strip)
#define store NAME(store)
#define store_narrow NAME(store_narrow)
#define store_part NAME(store_part)
#define stream_row NAME(stream_row)
#define stream_to NAME(stream_to)
#define strip_of NAME(strip_of)
#define sum_brief_rows NAME(sum_brief_rows)
#define sum_four_rows NAME(sum_four_rows)
#define sum_lane NAME(sum_lane)
#define sum_lanes NAME(sum_lanes)
#define sum_one_row NAME(sum_one_row)
#define sum_rows NAME(sum_rows)
#define sum_strip NAME(sum_strip)
#define sum_strip_of_rows NAME(sum_strip_of_rows)
#define sums_of_row NAME(sums_of_row)
#define sweep_across NAME(sweep_across)
#define sweep_elements NAME(sweep_elements)
#define sweep_fours NAME(sweep_fours)
#define sweep_part NAME(sweep_part)
#define sweep_row NAME(sweep_row)
#define sweep_rows NAME(sweep_rows)
#define sweep_seams NAME(sweep_seams)
#define sweep_strip NAME(sweep_strip)
#define sweep_together NAME(sweep_together)
#define terms_of NAME(terms_of)
#define to_next_batch NAME(to_next_batch)
#define total_of NAME(total_of)
#define total_of_block NAME(total_of_block)
#define total_of_row NAME(total_of_row)
#define until_aligned NAME(until_aligned)
#define values_of NAME(values_of)
#define values_of_register NAME(values_of_register)
#define view_of NAME(view_of)
#define widen NAME(widen)
#define write_row NAME(write_row)
#define write_seams NAME(write_seams)

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
