/** Frames of video files, decoded by the ffmpeg that is installed on this machine. */
import { spawn } from 'node:child_process';
import path from 'node:path';
import type { Image } from './image.js';
import { SampleError } from './samples.js';

/** File name endings (lower case) that count as videos in a folder. */
export const videoSuffixes: readonly string[] = [
  '.mp4',
  '.m4v',
  '.mov',
  '.avi',
  '.mkv',
  '.webm',
  '.mpg',
  '.mpeg',
  '.wmv',
  '.flv',
  '.ogv',
  '.3gp',
  '.ts',
];

/** True if the name ends as video files do, upper or lower case. */
export function hasVideoSuffix(name: string): boolean {
  return videoSuffixes.includes(path.extname(name).toLowerCase());
}

/** Frames are numbered, not timed: the n-th is shown at n / RATE, so that none is dropped or doubled to keep the time. */
const RATE = '25';
const NUMBERED = `settb=1/${RATE},setpts=N`;

/**
 * How many frames a video file has; decodes all of it, since what the file says about itself may be wrong.
 *
 * @throws SampleError for a file that cannot be decoded or has no frame; Error without ffmpeg
 */
export async function countFrames(file: string): Promise<number> {
  // One gray pixel per frame, so that frames can be counted by their bytes.
  const filter = ['-vf', `${NUMBERED},scale=1:1,format=gray`];
  const pixels = await run(file, [...filter, '-r', RATE, '-f', 'rawvideo', 'pipe:1']);
  if (pixels.length === 0) throw new SampleError(file, `the video ${file} has no frame`);
  return pixels.length;
}

/**
 * Frames of a video file by their numbers, which rise.
 *
 * @throws SampleError for a file that cannot be decoded or has fewer frames; Error without ffmpeg
 */
export async function decodeFrames(file: string, numbers: readonly number[]): Promise<Image[]> {
  const filter = ['-vf', `select='${oneOf(numbers)}',${NUMBERED}`, '-r', RATE, '-frames:v', String(numbers.length)];
  const output = await run(file, [...filter, '-f', 'image2pipe', '-c:v', 'ppm', '-pix_fmt', 'rgb24', 'pipe:1']);
  const frames: Image[] = [];
  for (let at = 0; at < output.length;) {
    const { image, end } = readPpm(output, at, file);
    frames.push(image);
    at = end;
  }
  if (frames.length !== numbers.length) {
    throw new SampleError(
      file,
      `the video ${file} is damaged: of the frames ${numbers.join(', ')} only ${String(frames.length)} can be decoded`,
    );
  }
  return frames;
}

/** An expression of ffmpeg's for "n is one of these"; nested in halves, since ffmpeg bounds how deep expressions may be. */
function oneOf(numbers: readonly number[]): string {
  if (numbers.length <= 1) return `eq(n,${String(numbers[0] ?? -1)})`;
  const half = numbers.length >> 1;
  return `(${oneOf(numbers.slice(0, half))}+${oneOf(numbers.slice(half))})`;
}

/** A picture of the kind "P6", 8 bits per channel, that begins at a place. */
function readPpm(bytes: Buffer, start: number, file: string): { image: Image; end: number } {
  const header = /^P6\s(\d+)\s(\d+)\s255\s/.exec(bytes.toString('latin1', start, start + 64));
  const [width, height] = [Number(header?.[1]), Number(header?.[2])];
  const from = start + (header?.[0].length ?? 0);
  const end = from + width * height * 3;
  if (!(end <= bytes.length)) throw new SampleError(file, `the video ${file} is damaged: a frame is cut off`);
  // A copy: a view would keep all the other frames in memory.
  return { image: { data: Uint8Array.from(bytes.subarray(from, end)), width, height, channels: 3 }, end };
}

/** Runs ffmpeg on a file and gives what it writes. */
function run(file: string, output: readonly string[]): Promise<Buffer> {
  // 'file:' so that no name is taken for an option or an address.
  const input = ['-xerror', '-err_detect', 'explode', '-i', `file:${path.resolve(file)}`, '-map', '0:v:0'];
  return new Promise((resolve, reject) => {
    const child = spawn('ffmpeg', ['-nostdin', '-v', 'error', ...input, ...output], {
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    const chunks: Buffer[] = [];
    let complaints = '';
    child.stdout.on('data', (chunk: Buffer) => chunks.push(chunk));
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      complaints = (complaints + text).slice(0, 2000);
    });
    child.on('error', (error: NodeJS.ErrnoException) => {
      reject(error.code === 'ENOENT' ? withoutFfmpeg(file) : error);
    });
    child.on('close', (code) => {
      if (code === 0) {
        resolve(Buffer.concat(chunks));
        return;
      }
      const reason = complaints.split('\n').find((line) => line.trim() !== '') ?? `ffmpeg ended with ${String(code)}`;
      reject(new SampleError(file, `cannot decode the video ${file}: ${reason.trim()}`));
    });
  });
}

function withoutFfmpeg(file: string): Error {
  return new Error(
    `the video file ${file} needs ffmpeg, which is not installed (or not on the PATH); install it (Debian, Ubuntu: ` +
      'apt install ffmpeg; macOS: brew install ffmpeg; Windows: winget install ffmpeg), or unpack each video into a folder of frames',
  );
}
