# A row of one's own beside the full model: four semantic tokens, compared over two seeds.
python experiments/ablate.py --recipe tests/examples/small_recipe.yaml --seeds 2 \
    --row 'K = 4: model.str.tokens=4'
