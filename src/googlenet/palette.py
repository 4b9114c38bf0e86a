"""Colors of all charts and drawings: Okabe and Ito's palette, distinguishable with color vision deficiency."""

BLUE, VERMILLION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY_BLUE, YELLOW, BLACK = "#E69F00", "#56B4E9", "#F0E442", "#000000"

# Lines and bars of a chart. Yellow is too faint on white.
PALETTE = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY_BLUE, BLACK)
# Boxes on images, by class. Black is invisible on dark images.
BOX_COLORS = (VERMILLION, BLUE, GREEN, PURPLE, ORANGE, SKY_BLUE, YELLOW)

GRAY, LIGHT_GRAY = "#6b7280", "#e3e7ec"
