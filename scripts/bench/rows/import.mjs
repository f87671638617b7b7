/** From nothing to the first printed tensor. */
export default async function measure() {
  const start = performance.now();
  const { tensor } = await import('torchgraft');
  console.log(
    tensor([
      [1, 2],
      [3, 4],
    ]).toString(),
  );
  return { seconds: (performance.now() - start) / 1000 };
}
