/** Adapters in models whose backbone is a part of them. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { graft, loadAdapter, readAdapterFolder } from '../../lib/adapters/index.js';
import { loadState } from '../../lib/models/index.js';
import { noGrad, rand } from '../../lib/tensor/index.js';
import { detector, segmenter } from '../train/dense.js';

let path = '';
beforeEach(() => void (path = mkdtempSync(join(tmpdir(), 'torchgraft-dense-'))));
afterEach(() => {
  rmSync(path, { recursive: true, force: true });
});

test.each([
  ['segmentation', segmenter],
  ['detection', detector],
])('a folder of %s holds grafts in the backbone, and the head', (_name, make) => {
  const model = make();
  const adapter = graft(model, 'conv_adapter', { reduction: 2 }, { seed: 1 });
  noGrad(() => {
    for (const parameter of adapter.parameters()) parameter.add_(rand(parameter.shape).mul(0.1));
  });
  const task = { kind: 'dense', levels: [1, 2] };
  adapter.save(path, { task });
  const folder = readAdapterFolder(path);
  expect(folder.config.task).toEqual(task);
  const names = adapter.namedParameters().map(([name]) => name);
  expect([...folder.tensors.keys()]).toEqual(expect.arrayContaining(names));
  expect(names.some((name) => /^backbone\.(body\.)?layer1.*adapter/.test(name))).toBe(true);

  // Fresh heads are random; the backbone must be the same.
  const again = make();
  loadState(again, model.stateDict());
  const loaded = new Map(loadAdapter(again, folder).namedParameters());
  for (const [name, parameter] of adapter.namedParameters()) {
    expect(loaded.get(name)?.equal(parameter), name).toBe(true);
  }
});
