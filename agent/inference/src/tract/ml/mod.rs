//! The operators of `ai.onnx.ml`, which exports from scikit-learn, XGBoost and LightGBM consist of and tract mostly lacks.
//!
//! What an operator computes is what onnxruntime computes, where ONNX leaves a choice as well: the answers that people have
//! seen and put into golden examples come from there. Attributes come from any file; whatever is wrong with them is found
//! when the model is loaded, so that a run meets nothing unexpected.

mod attributes;
mod encoding;
mod kernel;
mod labels;
mod linear;
mod numeric;
mod post;
mod selection;
mod svm;
#[cfg(test)]
mod tests;
mod trees;

use tract_onnx::Onnx;

pub(super) use kernel::{MlOp, NotTaken};

/// The domain of these operators.
pub(super) const DOMAIN: &str = "ai.onnx.ml";

/// The operators that are registered here.
pub(super) const OPERATORS: [&str; 16] = [
    "ArrayFeatureExtractor",
    "Binarizer",
    "FeatureVectorizer",
    "Imputer",
    "LabelEncoder",
    "LinearClassifier",
    "LinearRegressor",
    "Normalizer",
    "OneHotEncoder",
    "SVMClassifier",
    "SVMRegressor",
    "Scaler",
    "TreeEnsemble",
    "TreeEnsembleClassifier",
    "TreeEnsembleRegressor",
    "ZipMap",
];

/// Adds the operators to `framework`, in place of tract's own where it has them.
pub(super) fn register(framework: &mut Onnx) {
    let operators = &mut framework.op_register;
    operators.insert("ArrayFeatureExtractor", selection::array_feature_extractor);
    operators.insert("Binarizer", numeric::binarizer);
    operators.insert("FeatureVectorizer", selection::feature_vectorizer);
    operators.insert("Imputer", numeric::imputer);
    operators.insert("LabelEncoder", encoding::label_encoder);
    operators.insert("LinearClassifier", linear::classifier);
    operators.insert("LinearRegressor", linear::regressor);
    operators.insert("Normalizer", numeric::normalizer);
    operators.insert("OneHotEncoder", encoding::one_hot_encoder);
    operators.insert("SVMClassifier", svm::classifier);
    operators.insert("SVMRegressor", svm::regressor);
    operators.insert("Scaler", numeric::scaler);
    operators.insert("TreeEnsemble", trees::ensemble);
    operators.insert("TreeEnsembleClassifier", trees::classifier);
    operators.insert("TreeEnsembleRegressor", trees::regressor);
    operators.insert("ZipMap", selection::zip_map);
}
