#!/bin/sh
# make examples: each example at toy size, on handwritten digits, which are written unless `make demo` has. Minutes.
set -eu
mkdir -p demo
for split in train val; do
    test -f demo/$split.beton || python write_dataset.py --dataset=digits --split=$split --write_path=demo/$split.beton
done
data="--data.train_dataset=demo/train.beton --data.val_dataset=demo/val.beton"
encoder="--weights=demo/mae/final_weights.pt"
rm -rf demo/mae demo/mae_finetune demo/mae_probe
set -x
python -m examples.mae.pretrain --config-file=examples/mae/toy.yaml $data --logging.folder=demo/mae
python -m examples.mae.finetune --config-file=examples/mae/toy_finetune.yaml $encoder $data --logging.folder=demo/mae_finetune
python -m examples.mae.finetune --config-file=examples/mae/toy_probe.yaml $encoder $data --logging.folder=demo/mae_probe
rm -rf demo/moco demo/moco_linear
python -m examples.contrastive.pretrain --config-file=examples/contrastive/toy.yaml --logging.folder=demo/moco
python -m examples.contrastive.linear --weights=demo/moco/final_weights.pt --training.resolution=48 --training.global_batch_size=64 --training.epochs=3 $data --data.flip_probability=0 --logging.folder=demo/moco_linear
