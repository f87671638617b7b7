/** Names that cross the boundary as strings: dtypes, devices, layouts. */

/** Element type of a tensor. */
export type DType =
  | 'float32'
  | 'float64'
  | 'float16'
  | 'bfloat16'
  | 'int8'
  | 'int16'
  | 'int32'
  | 'int64'
  | 'uint8'
  | 'bool'
  | 'complex64'
  | 'complex128'
  | StoredDType;

/** Element types that tensors are stored in and converted from; LibTorch computes in the others. */
export type StoredDType =
  | 'uint16'
  | 'uint32'
  | 'uint64'
  | 'float8_e4m3fn'
  | 'float8_e5m2'
  | 'float8_e4m3fnuz'
  | 'float8_e5m2fnuz'
  | 'float8_e8m0fnu';

/** Where a tensor lives. `meta` tensors have shape and dtype but no elements. */
export type Device = 'cpu' | 'meta' | 'cuda' | `cuda:${number}`;

/** Order of the elements of a dense tensor in memory. */
export type MemoryFormat = 'contiguous_format' | 'channels_last' | 'channels_last_3d' | 'preserve_format';

/** How a tensor stores its elements. */
export type Layout = 'strided' | 'sparse_coo' | 'sparse_csr' | 'sparse_csc' | 'sparse_bsr' | 'sparse_bsc';

/** A single value where LibTorch takes a number. */
export type Scalar = number | bigint | boolean;
