/** Splitting a batch into groups of rows, and putting results that were computed group by group back into its order. */

/** The rows that share a key, keys in the order in which they first appear. */
export function groupRows<K>(keys: readonly K[]): Map<K, number[]> {
  const groups = new Map<K, number[]>();
  keys.forEach((key, row) => {
    const rows = groups.get(key);
    if (rows) rows.push(row);
    else groups.set(key, [row]);
  });
  return groups;
}

/** The indices of rows in features that have `each` of their own for every row of the batch. */
export function spread(rows: readonly number[], each: number): number[] {
  return rows.flatMap((row) => Array.from({ length: each }, (_, i) => row * each + i));
}

/** Where each row of the batch stands once the groups follow one another: the index that undoes the grouping. */
export function originalOrder(groups: readonly (readonly number[])[]): number[] {
  const places: number[] = [];
  groups.flat().forEach((row, place) => (places[row] = place));
  return places;
}
