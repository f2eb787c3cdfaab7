"""One suite over all recipes, which it finds by looking. ``[NAME]`` ends each test's name, so that ``-k`` chooses.

    python -m pytest conf_tests/conformance -k "[td]"            # the fast tier of one: seconds
    python -m pytest conf_tests/conformance -k "[td]" -m full    # the full tier: minutes

NAME is a recipe's file, one of its configs, or one of its comparisons. CONTRIBUTING.md tells what is asked of a recipe.
"""
