"""What a training or a video will cost, before anything is started."""
