/** The commands that tell facts: help, models, sites, methods, inspect; and how mistakes are answered. */
import { describe, expect, it } from 'vitest';
import { json, succeed, torchgraft } from './process.js';

const commands = [
  'quickstart',
  'finetune',
  'evaluate',
  'predict',
  'merge',
  'lid',
  'inspect',
  'sites',
  'models',
  'methods',
  'matrix',
  'doctor',
];

describe('help', () => {
  it('lists every command', async () => {
    const help = await succeed('--help');
    for (const name of commands) expect(help).toMatch(new RegExp(`^  ${name} `, 'm'));
    expect(await succeed('--version')).toMatch(/^\d+\.\d+\.\d+\n$/);
  });

  it.each(commands)('of %s teaches by example', async (name) => {
    const help = await succeed(name, '--help');
    expect(help).toContain(`Usage: torchgraft ${name}`);
    expect(help).toMatch(new RegExp(`\\$ torchgraft ${name}`));
  });
});

describe('mistakes', () => {
  it.each([
    [['modells'], /unknown command 'modells'[\s\S]*models/],
    [['models', '--jsn'], /unknown option '--jsn'[\s\S]*--json/],
    [['sites'], /missing required argument 'model'/],
    [['sites', 'resnet5'], /no model 'resnet5'; did you mean resnet50/],
    [['sites', 'cifar_resnet20', '--role', 'atention'], /no site with role 'atention'; its roles are .*conv/],
    [['inspect', 'cifar_resnet20', 'conv_adaptor'], /no method 'conv_adaptor'; did you mean conv_adapter/],
    [['inspect', 'cifar_resnet20', 'lora', '--set', 'rnk=4'], /unknown option 'rnk'; did you mean rank/],
    [['inspect', 'cifar_resnet20', 'lora', '--set', 'rank'], /--set expects key=value, got 'rank'/],
    [['inspect', 'cifar_resnet20', 'lora', '--classes', '0'], /expected a whole number of at least 1/],
    [['evaluate', '/nowhere', '--data', '.'], /no adapter folder or merged checkpoint \/nowhere/],
    [['finetune', 'cifar_resnet20', '--out', '/nowhere/x', '--data', '.'], /--weights is missing/],
    [['finetune', '--out', '/nowhere/x', '--resume'], /there is no run in/],
    [['models', 'zzz'], /no model has 'zzz' in its name/],
    [['predict', 'x', 'y', '--device', 'tpu'], /expected cpu, cuda or cuda:N, got 'tpu'/],
  ])('%j ends with 2, says what is wrong, and shows no stack', async (args, message) => {
    const { code, stdout, stderr } = await torchgraft(args);
    expect({ code, stdout, stderr }).toMatchObject({ code: 2, stdout: '' });
    expect(stderr).toMatch(message);
    expect(stderr).not.toMatch(/^\s+at /m);
  });

  it('show their stack with --debug, wherever it stands', async () => {
    const { code, stderr } = await torchgraft(['sites', 'resnet5', '--debug']);
    expect(code).toBe(2);
    expect(stderr).toMatch(/^\s+at /m);
  });
});

describe('models', () => {
  it('are counted', async () => {
    const rows = await json<{ name: string; parameters: number; inputSize: number[] }[]>('models', 'cifar');
    expect(rows[0]).toMatchObject({ name: 'cifar_resnet20', parameters: 269_722, inputSize: [3, 32, 32] });
    expect(await succeed('models', 'cifar_resnet20')).toContain('269,722');
  });
});

describe('sites', () => {
  it('have paths, roles and channels', async () => {
    const rows = await json<{ path: string; roles: string[]; in: number; out: number }[]>('sites', 'cifar_resnet20');
    expect(rows.find((r) => r.path === 'layer2.0.conv1')).toMatchObject({ in: 16, out: 32 });
    const convolutions = await json<{ roles: string[] }[]>('sites', 'cifar_resnet20', '--role', 'conv');
    expect(convolutions).toHaveLength(19);
  });
});

describe('methods', () => {
  it('are listed with their options', async () => {
    const all = await json<{ id: string }[]>('methods');
    expect(all.map((m) => m.id)).toEqual(
      expect.arrayContaining(['linear_probe', 'lora', 'ssf', 'conv_adapter', 'bitfit', 'full']),
    );
    const options = await succeed('methods', 'conv_adapter');
    expect(options).toMatch(/reduction +8 +number from 1 on\n/);
    expect(options).toMatch(/scheme +"conv_par" +conv_par, conv_seq, res_par, res_seq\n/);
    expect(options).toMatch(/finalNorm +false +true, false\n/);
  });
});

describe('inspect', () => {
  // The table of the transfer experiment: trainable parameters, head included.
  it.each([
    ['linear_probe', [], 650],
    ['bitfit', [], 1_338],
    ['ssf', [], 3_402],
    ['lora', ['rank=4', 'alpha=4'], 25_802],
    ['conv_adapter', ['reduction=4'], 15_190],
    ['full', [], 269_722],
  ])('counts %s', async (method, settings, trainable) => {
    const set = settings.flatMap((s) => ['--set', s]);
    const result = await json<{ trainable: number; total: number; percent: number }>(
      'inspect',
      'cifar_resnet20',
      method,
      ...set,
      '--classes',
      '10',
    );
    expect(result.trainable).toBe(trainable);
    expect(result.percent).toBeCloseTo((100 * trainable) / result.total, 10);
  });

  it('tells where the grafts are', async () => {
    const text = await succeed('inspect', 'vit_tiny_patch16_224', 'lora', '--set', 'rank=2', '--sites');
    expect(text).toContain('blocks.11.attn.qkv[q]');
    expect(text).toMatch(/of 5,\d{3},\d{3} parameters are trained/);
  });
});
