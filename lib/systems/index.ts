export { averageViews } from './video.js';
