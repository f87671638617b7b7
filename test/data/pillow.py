"""Pillow's pixels for pillow.test.ts: python pillow.py OUT < JSON list of {file, kind, height, width} -> OUT, all results in one file of bytes."""

import json
import sys

from PIL import Image, ImageOps

FILTERS = {'bilinear': Image.Resampling.BILINEAR, 'bicubic': Image.Resampling.BICUBIC}

with open(sys.argv[1], 'wb') as out:
    for case in json.load(sys.stdin):
        image = ImageOps.exif_transpose(Image.open(case['file'])).convert('RGB')
        out.write(image.resize((case['width'], case['height']), FILTERS[case['kind']]).tobytes())
