#!/bin/bash
MODEL=Qwen/Qwen2.5-7B-Instruct
OUT=saves/qwen

CUDA_VISIBLE_DEVICES=0,1 torchrun --nproc_per_node 2 src/train.py \
    --stage sft \
    --do_train True \
    --model_name_or_path ${MODEL} \
    --dataset_dir data \
    --dataset identity \
    --template qwen \
    --finetuning_type lora \
    --quantization_bit 4 \
    --lora_target q_proj,v_proj \
    --output_dir $OUT/qlora \
    --per_device_train_batch_size 2 \
    --gradient_accumulation_steps 4 \
    --lr_scheduler_type cosine_with_min_lr \
    --lr_scheduler_kwargs '{"min_lr_rate": 0.1}' \
    --warmup_steps 20 \
    --save_strategy epoch \
    --learning_rate 5e-5 \
    --num_train_epochs 2.0 \
    --fp16
