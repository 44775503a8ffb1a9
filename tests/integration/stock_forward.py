"""Run as a program: the stock processor and the stock model on an mp4, in a process of their own.

The stock video processor needs torchvision, whose published build does not register its operators beside a CPU build
of torch; the two that its import asks for are declared here. Arguments: checkpoint, mp4, question, output.
"""

from __future__ import annotations

import sys
from pathlib import Path

import av
import torch

library = torch.library.Library("torchvision", "DEF")
library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
sys.path.insert(0, str(Path(sys.prefix) / "stock"))

from transformers import AutoModelForImageTextToText, AutoProcessor  # noqa: E402
from transformers.video_utils import VideoMetadata  # noqa: E402


def main(checkpoint: str, path: str, question: str, output: str) -> None:
    processor = AutoProcessor.from_pretrained(checkpoint)
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32).eval()
    with av.open(path) as container:
        stream = container.streams.video[0]
        fps = float(stream.average_rate)
        frames = [torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in container.decode(stream)]
    video = torch.stack(frames).permute(0, 3, 1, 2)
    content = [{"type": "video"}, {"type": "text", "text": question}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    inputs = processor(
        text=[text],
        videos=[video],
        video_metadata=[
            VideoMetadata(
                total_num_frames=len(frames),
                fps=fps,
                frames_indices=list(range(len(frames))),
                duration=len(frames) / fps,
            )
        ],
        do_sample_frames=False,
        return_tensors="pt",
    )
    inputs.pop("video_metadata", None)
    with torch.inference_mode():
        logits = model(**inputs).logits[0, -1]
        written = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    torch.save({"logits": logits, "ids": written, "grid": inputs["video_grid_thw"]}, output)


if __name__ == "__main__":
    main(*sys.argv[1:])
